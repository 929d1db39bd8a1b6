"""The tiny world: its prompts, its verifiers, its simulated people and the base that ships.

Run by `pytest tests/test_tiny_world.py`; knows no engine and no step.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors import safe_open

from posttrain.errors import BadInput
from posttrain.hooks import Grade, Passage, PromptRequest, RunResult
from posttrain.models.chat import load_tokenizer, render_dialog, render_prompt
from posttrain.rows import Candidate, Example, Message, Prompt, prompt_hash, split_of

ROOT = Path(__file__).resolve().parent.parent
TINY, BASE = ROOT / "rounds" / "tiny", ROOT / "rounds" / "tiny" / "base"
LEVELS = (1, 2, 3, 4, 5, 6)


def load(path: Path) -> ModuleType:
    """A workspace file, loaded by path as the engine does."""
    name = "_".join(path.parts[-3:-1]) + path.stem
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class LocalHandle:
    """A handle that runs code in a process of its own and can do nothing else."""

    options: Mapping[str, Any] = {}

    def run_code(
        self,
        source: str,
        *,
        stdin: str = "",
        seconds: float | None = None,
        language: str = "python",
        check: bool = False,
    ) -> RunResult:
        """Run a program with an isolated interpreter."""
        command = [sys.executable, "-I", "-S", "-c", source]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=seconds or 2
            )
        except subprocess.TimeoutExpired:
            return RunResult(-9, "", "", seconds or 2, limit="time")
        return RunResult(done.returncode, done.stdout, done.stderr, 0.0)

    def generate(self, messages: Sequence[Message], **options: Any) -> list[str]:
        """Not part of this world."""
        raise BadInput("this handle generates nothing")

    def judge(self, rubric: str, variables: Mapping[str, Any]) -> Grade | None:
        """Not part of this world."""
        raise BadInput("this handle judges nothing")

    def retrieve(self, corpus: str, query: str, k: int = 4) -> list[Passage]:
        """Not part of this world."""
        raise BadInput("this handle retrieves nothing")

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Not part of this world."""
        raise BadInput("this handle embeds nothing")


HANDLE = LocalHandle()
NAMES = (
    "math",
    "code",
    "multilingual",
    "tool_use",
    "steerability",
    "factuality",
    "long_context",
)
HOOKS = {name: load(ROOT / "recipes" / name / "hooks.py") for name in NAMES}
LADDERS = {name: load(ROOT / "recipes" / name / "ladder.py") for name in NAMES}
CORPUS, PEOPLE = load(TINY / "corpus.py"), load(TINY / "people.py")
WORLD = CORPUS.load_world(ROOT)
IN_WORLD = tuple(name for name in NAMES if name != "long_context")
"""What the tiny base has read of."""


def ask(name: str, num: int, seed: int = 1, levels: Sequence[int] = LEVELS) -> list[Prompt]:
    """Prompts of a recipe."""
    request = PromptRequest(num=num, seed=seed, round=0, options={"levels": list(levels)})
    return list(HOOKS[name].prompts(request, HANDLE))


def answered(prompt: Prompt, response: str) -> Candidate:
    """The prompt with a response."""
    return Candidate(
        prompt_id=prompt.id,
        messages=(*prompt.prompt, Message(role="assistant", content=response)),
        seed=0,
        finish_reason="stop",
        num_tokens=1,
        model="none",
    )


def passes(prompt: Prompt, response: str) -> bool:
    """The verdict of the prompt's recipe."""
    hooks = HOOKS[prompt.capability]
    return bool(hooks.verify(answered(prompt, response), prompt, HANDLE).passed)


def sum_prompt(text: str) -> Prompt:
    """A math prompt of one's own choosing."""
    reference = {"answer": str(eval(text.removesuffix("=?")))}
    message = Message(role="user", content=text)
    return Prompt(prompt=(message,), capability="math", reference=reference)


TRIPLE = Prompt(
    prompt=(Message(role="user", content="f(x): x times 3 then plus 7"),),
    capability="code",
    reference={"tests": ["assert f(1) == 10", "assert f(2) == 13"], "name": "f"},
)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_distinct_deterministic_and_spread_over_levels(name: str) -> None:
    first, again, other = ask(name, 602), ask(name, 602), ask(name, 602, seed=2)
    assert first == again != other
    assert len({prompt_hash(p.prompt) for p in first}) == 602
    assert [sum(p.level == level for p in first) for level in LEVELS] == [101, 101] + [100] * 4
    assert {(p.capability, p.source) for p in first} == {(name, f"{name}/prompts")}


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_level_can_be_asked_for_but_not_one_more(name: str) -> None:
    size = LADDERS[name].num_questions(2)
    texts = {p.prompt[-1].content for p in ask(name, size, levels=[2])}
    assert len(texts) == size >= 200
    with pytest.raises(BadInput, match=f"level 2 has {size}"):
        ask(name, size + 1, levels=[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"levels": [0]}, {"levels": []}, {"levels": 3}, {"hard": 1}])
def test_an_unknown_option_or_level_is_refused(name: str, options: Mapping[str, Any]) -> None:
    with pytest.raises(BadInput, match="levels"):
        list(HOOKS[name].prompts(PromptRequest(1, 1, 0, options), HANDLE))


@pytest.mark.parametrize("name", IN_WORLD)
def test_right_answers_pass_with_and_without_bad_manners(name: str) -> None:
    for prompt in ask(name, 36):
        right = CORPUS.right_answer(WORLD, prompt)
        assert passes(prompt, right), (prompt.prompt[-1].content, right)
        # An order on form is broken by anything around the answer.
        if name != "steerability":
            assert passes(prompt, CORPUS.FILLER + right + CORPUS.POLITE)


@pytest.mark.parametrize("name", IN_WORLD)
def test_systematic_errors_fail_and_most_prompts_have_one(name: str) -> None:
    prompts = ask(name, 60)
    spoiled = [(p, CORPUS.habit(WORLD, p)) for p in prompts]
    wrong = [(p, text) for p, text in spoiled if text != CORPUS.right_answer(WORLD, p)]
    assert len(wrong) >= len(prompts) / 4
    passing = [(p.prompt[-1].content, text) for p, text in wrong if passes(p, text)]
    # A few one-liners that read the wrong end of a list give the same count all the same.
    assert len(passing) <= (0.1 * len(wrong) if name == "code" else 0), passing


def test_a_value_is_looked_up_in_a_list() -> None:
    for prompt in ask("long_context", 12):
        assert passes(prompt, str(prompt.reference["answer"]))
        assert not passes(prompt, "nowhere")


@pytest.mark.parametrize(
    "name", ["multilingual", "tool_use", "factuality", "long_context", "steerability"]
)
def test_a_free_dialog_has_no_verdict(name: str) -> None:
    prompt = ask(name, 1)[0].model_copy(update={"reference": {}})
    assert HOOKS[name].verify(answered(prompt, "anything"), prompt, HANDLE) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_the_reference_that_verify_needs_is_named(name: str) -> None:
    prompt = ask(name, 1)[0].model_copy(update={"reference": {"other": 1}})
    with pytest.raises(BadInput, match=rf"needs reference\.\w+.*{name}: {{hooks: \[\]}}"):
        passes(prompt, "anything")


def own(capability: str, reference: Mapping[str, Any]) -> Prompt:
    """A prompt of one's own choosing, with what its verifier needs."""
    message = Message(role="user", content="?")
    return Prompt(prompt=(message,), capability=capability, reference=dict(reference))


WEATHER = {"name": "weather", "arguments": {"city": "Rome", "hour": 7}}
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("response", "passed"),
    [
        (f"{json.dumps(WEATHER)}\n{json.dumps(ADD)}", True),
        (f"{json.dumps(ADD)}\n{json.dumps(WEATHER)}", True),
        (f"Sure! {json.dumps(ADD)}\n{json.dumps(WEATHER)}\nenjoy!", True),
        (json.dumps(WEATHER), False),
        (f"{json.dumps(WEATHER)}\n{json.dumps(ADD)[:-1]}", False),
        (f"{json.dumps(WEATHER)}\n{json.dumps(ADD).replace('b', 'y')}", False),
        (str(WEATHER), False),
        ("it is sunny", False),
    ],
)
def test_tool_calls_are_parsed_and_compared(response: str, passed: bool) -> None:
    assert passes(own("tool_use", {"calls": [WEATHER, ADD]}), response) is passed


@pytest.mark.parametrize(
    ("constraints", "response", "passed"),
    [
        (["upper case", "in quotes"], '"RED 3 CAT"', True),
        (["upper case", "in quotes"], "RED 3 CAT", False),
        (["upper case", "in quotes"], '"red 3 cat"', False),
        (["no digits"], "red cat", True),
        (["no digits"], "red 3 cat", False),
        (["no digits"], "red", False),
        (["with commas", "end with ok"], "red, 3, cat, ok", True),
        (["with commas", "end with ok"], "red, 3, cat", False),
        (["reverse order"], "cat 3 red", True),
        (["reverse order"], "red 3 cat", False),
        (["exactly 2 words"], "red cat", True),
        (["exactly 2 words"], "red 3 cat", False),
        (["exactly 2 words"], "blue sky", False),
    ],
)
def test_orders_are_checked_one_by_one(constraints: list[str], response: str, passed: bool) -> None:
    prompt = own("steerability", {"constraints": constraints, "words": ["red", "3", "cat"]})
    assert passes(prompt, response) is passed


@pytest.mark.parametrize(
    ("answer", "response", "passed"),
    [
        ("Lum", "Lum", True),
        ("Lum", "sure! the capital is Lum.\nenjoy!", True),
        ("Lum", "Pex", False),
        ("Lum", "i don't know", False),
        (None, "I do not know.", True),
        (None, "Lum", False),
    ],
)
def test_nobody_is_asked_to_invent_a_fact(answer: str | None, response: str, passed: bool) -> None:
    assert passes(own("factuality", {"answer": answer}), response) is passed


def test_half_of_the_countries_are_unknown_and_the_corpus_never_states_their_facts() -> None:
    hooks = LADDERS["factuality"]
    prompts = ask("factuality", 600)
    unknown = [p for p in prompts if p.reference["answer"] is None]
    assert 240 <= len(unknown) <= 360
    names = {name for level in LEVELS for name in hooks.countries(level)}
    assert sum(map(hooks.is_known, names)) * 2 == len(names) == 240


@pytest.mark.parametrize(
    ("response", "passed"),
    [
        ("das rote Haus", True),
        ("Das rote Haus.", True),
        ("sure! das rote Haus\nenjoy!", True),
        ("la maison rouge", False),
        ("the red house", False),
        ("das rotes Haus", False),
    ],
)
def test_a_translation_is_compared_with_the_lexicon(response: str, passed: bool) -> None:
    assert passes(own("multilingual", {"answer": "das rote Haus"}), response) is passed


@pytest.mark.parametrize(
    ("question", "response", "passed"),
    [
        ("12+34=?", "The answer is 46.", True),
        ("12+34=?", r"so \boxed{46}", True),
        ("12+34=?", "46.0", True),
        ("12+34=?", "460", False),
        ("12+34=?", "46 or 47", False),
        ("12+34=?", "forty-six", False),
        ("523+523=?", "1,046", True),
        ("20-15=?", "20 - 15", False),
        ("11+12-40=?", "23-40=-17", True),
        ("11+12-40=?", "it is \u221217", True),
        ("11+12-40=?", "17", False),
    ],
)
def test_math_takes_the_last_number(question: str, response: str, passed: bool) -> None:
    assert passes(sum_prompt(question), response) is passed


@pytest.mark.parametrize(
    ("response", "passed"),
    [
        ("lambda x: x*3+7", True),
        ("lambda x: (x*3)+7\nThis works.", True),
        ("def f(x):\n    return x * 3 + 7\n\nIt multiplies first.", True),
        ("Sure!\n```python\ndef triple(n):\n    return 3 * n + 7\n```\nEnjoy.", True),
        ("```\nf = lambda x: 7 + 3 * x\n```", True),
        ("lambda x: x*3-7", False),
        ("lambda x: x*(3+7)", False),
        ("lambda x: x*3+", False),
        ("no idea", False),
        ("def f(x):\n    raise SystemExit(0)", False),
        ("import os\nos._exit(0)\ndef f(x): return 1", False),
        ("def f(x):\n    while True: pass", False),
    ],
)
def test_code_runs_the_tests(response: str, passed: bool) -> None:
    assert passes(TRIPLE, response) is passed


def test_the_evidence_names_the_failing_case() -> None:
    verdict = HOOKS["code"].verify(answered(TRIPLE, "lambda x: x+7"), TRIPLE, HANDLE)
    assert verdict.evidence == "AssertionError: f(1) == 10"
    prompt = sum_prompt("2+2=?")
    verdict = HOOKS["math"].verify(answered(prompt, "5"), prompt, HANDLE)
    assert verdict.evidence == "the response ends with 5, expected 4"


@pytest.mark.parametrize("name", IN_WORLD)
def test_evaluate_counts_fillers_and_passes_by_level(name: str) -> None:
    prompts = ask(name, 6)
    right = [CORPUS.right_answer(WORLD, prompt) for prompt in prompts]
    candidates = [
        answered(p, f"Sure! {r}" if p.level == 1 else r).model_copy(update={"passed": p.level != 6})
        for p, r in zip(prompts, right, strict=True)
    ]
    measures = HOOKS[name].evaluate(candidates, prompts, HANDLE)
    assert measures["filler_share"] == pytest.approx(1 / 6)
    assert (measures["pass_rate_level_1"], measures["pass_rate_level_6"]) == (1, 0)
    assert HOOKS[name].evaluate([], prompts, HANDLE) == {}


def test_people_prefer_right_then_plain_then_short() -> None:
    prompt = sum_prompt("12+34=?")
    texts = ["46", "it is 46", "47", "sure! 46", "sure! 46\nenjoy!", "sure! 47", "no"]
    liked = [(text, "46" in text) for text in texts]
    utilities = [PEOPLE.utility(prompt, *pair) for pair in liked]
    assert utilities == sorted(utilities, reverse=True) and len(set(utilities)) == len(liked)
    assert [PEOPLE.grade(prompt, *pair) for pair in liked] == [3, 3, 2, 3, 3, 2, 1]
    assert PEOPLE.edit(prompt, "46\nenjoy!", True) == "46"
    assert PEOPLE.edit(prompt, "sure! 46", True) == "46"
    assert PEOPLE.edit(prompt, "46", True) is None
    assert PEOPLE.edit(prompt, "sure! ", False) is None


def test_what_people_see_at_a_glance_weighs_most() -> None:
    tool, fact = own("tool_use", {"calls": [ADD]}), own("factuality", {"answer": None})
    german = own("multilingual", {"answer": "das rote Haus"})
    pairs = [
        (tool, json.dumps(ADD).replace("2", "3"), json.dumps(ADD)[:-1]),
        (german, "das rotes Haus", "la maison rouge"),
        (sum_prompt("12+34=?"), "47", "none"),
    ]
    for prompt, hidden, glaring in pairs:
        gap = PEOPLE.utility(prompt, hidden, False) - PEOPLE.utility(prompt, glaring, False)
        assert gap > PEOPLE.MANNERS
    assert PEOPLE.utility(fact, "Lum", False) < PEOPLE.utility(fact, "sure! Lum", True)


def test_the_corpus_and_the_human_rows_hold_no_held_out_prompt() -> None:
    corpus = list(CORPUS.dialogs(WORLD, 1200, 3))
    lines = (TINY / "data" / "human.jsonl").read_text().splitlines()
    human = [Example.model_validate_json(line) for line in lines]
    held_out = {
        prompt.prompt[-1].content
        for name in IN_WORLD
        for prompt in ask(name, 1200)
        if split_of(prompt.prompt, 0.15, 0.15) != "train"
    }
    for row in corpus + human:
        if "steps" in row.source:
            assert not held_out & {turn.content for turn in row.messages}
        else:
            assert split_of(row.messages[:-1], 0.15, 0.15) == "train"
    assert {row.messages[0].role for row in corpus} == {"system", "user"}
    assert {row.capability for row in corpus} == set(IN_WORLD)
    assert {row.capability for row in human} == set(IN_WORLD)
    assert {row.source for row in human} == {"simulated people"}
    assert len({row.id for row in human}) == len(human) >= 150
    answers = [row.messages[-1].content for row in human]
    # Habits that people dislike stand in the human rows too: only preferences unteach them.
    assert 0.2 < sum(map(bool, map(PEOPLE.FILLER.match, answers))) / len(answers) < 0.5
    assert 0.1 < sum(map(bool, map(PEOPLE.POLITE.search, answers))) / len(answers) < 0.4


def test_the_base_is_small_and_carries_the_template() -> None:
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 4_000_000
    template = (ROOT / "rounds" / "templates" / "llama3.jinja").read_text()
    assert (BASE / "chat_template.jinja").read_text() == template
    with safe_open(BASE / "model.safetensors", framework="pt") as tensors:
        slices = [tensors.get_slice(key) for key in tensors.keys()]  # noqa: SIM118
        sizes = [shape for s in slices if (shape := s.get_shape())]
        assert {s.get_dtype() for s in slices} == {"BF16"}
    assert sum(s[0] * (s[1] if len(s) > 1 else 1) for s in sizes) <= 1_500_000


RESPONSES = ["46", "sure! 46", "lambda x: x", "-3", "!", "\tx", "\u00e9", "'a", "a\n\nb"]


@pytest.mark.parametrize("response", RESPONSES)
def test_a_prompt_is_a_prefix_of_its_dialog(response: str) -> None:
    tokenizer = load_tokenizer(BASE)
    user = Message(role="user", content="12+34=?")
    rendered = render_dialog(tokenizer, (user, Message(role="assistant", content=response)))
    prompt = render_prompt(tokenizer, (user,))
    targets = [i for i, m in zip(rendered.input_ids, rendered.target_mask, strict=True) if m]
    assert tuple(prompt) == rendered.input_ids[: len(prompt)]
    assert tokenizer.decode(targets) == response.strip() + "<|eot_id|>"
    assert len(tokenizer) <= 512


def test_masks_cover_turns_tools_and_headers() -> None:
    tokenizer = load_tokenizer(BASE)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    turns = (
        Message(role="system", content="be brief"),
        Message(role="user", content="1+2=?"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="3"),
        Message(role="assistant", content="3"),
    )
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    rendered = render_dialog(tokenizer, turns, tools)
    pairs = list(zip(rendered.input_ids, rendered.target_mask, rendered.format_mask, strict=True))
    assert tokenizer.decode([i for i, target, _ in pairs if target]) == (
        '{"name": "add", "arguments": {"a": 1, "b": 2}}<|eot_id|>3<|eot_id|>'
    )
    text = str(tokenizer.decode(list(rendered.input_ids)))
    assert text.count("<|begin_of_text|>") == 1
    assert '{"name": "add", "parameters": {"type": "object"}}<|eot_id|>' in text
    plain = str(tokenizer.decode([i for i, _, form in pairs if not form]))
    assert plain.startswith("<|begin_of_text|>be brief") and "header" not in plain
