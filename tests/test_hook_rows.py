"""Hooks on many rows: batches that do not depend on timing, failures that stay with their row.

A small round has a recipe that makes and mends examples.
"""

import json
import random
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import BadInput, StepFailed
from posttrain.hook_rows import HookRows
from posttrain.hooks import Handle, Reply, fill
from posttrain.recipes.answers import Answers
from posttrain.recipes.corpora import Corpus
from posttrain.recipes.gathering import Outcome, Row, gather
from posttrain.rows import Message, split_of
from posttrain.settings.judges import NoJudge
from posttrain.settings.plan import Sampling
from posttrain.settings.recipe import RecipeSettings
from posttrain.settings.resources import Resources
from posttrain.settings.stages import HookStage
from posttrain.steps.output import Inputs, Output
from posttrain.workspace import Workspace
from tests.small_round import at, manifest, new_workspace, published, write_lines

ROOT = Path(__file__).resolve().parent.parent


class Asked:
    """Answers questions, and remembers which came together."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, questions: list[str]) -> list[str]:
        self.batches.append(list(questions))
        if any("impossible" in one for one in questions):
            raise BadInput("too long")
        return [f"<{one}>" for one in questions]


def collected(
    asked: Asked, count: int, live: int = 8, seconds: float = 30, jitter: int = 0
) -> list[Outcome[str]]:
    """Rows that ask a different number of questions, after pauses of any length."""
    draw = random.Random(jitter)

    def work(number: int, row: Row) -> str:
        found = []
        for turn in range(1 + number % 4):
            if jitter:
                time.sleep(draw.random() / 300)
            found.append(row.ask("generate", f"{number:03}/{turn}"))
        return " ".join(found)

    tasks = [
        (f"{number:03}", lambda row, number=number: work(number, row)) for number in range(count)
    ]
    return list(gather(tasks, {"generate": asked}, live=live, seconds=seconds))


def test_batches_depend_on_rows_alone() -> None:
    first = Asked()
    outcomes = collected(first, 30)
    assert [one.row_id for one in outcomes] == [f"{number:03}" for number in range(30)]
    assert outcomes[3].value == "<003/0> <003/1> <003/2> <003/3>"
    assert len(first.batches[0]) == 8
    assert all(batch == sorted(batch) for batch in first.batches)
    # As full as rows are left: fewer batches than rows.
    assert len(first.batches) <= 14
    for jitter in (1, 2):
        other = Asked()
        assert collected(other, 30, jitter=jitter) == outcomes
        assert other.batches == first.batches


def test_one_batch_holds_all_rows_that_wait() -> None:
    asked = Asked()
    collected(asked, 200, live=200)
    assert [len(batch) for batch in asked.batches] == [200, 150, 100, 50]


def test_a_row_that_fails_is_told_and_the_others_go_on() -> None:
    def raises(row: Row) -> str:
        row.ask("generate", "a question")
        raise ValueError("two\nlines")

    def impossible(row: Row) -> str:
        return str(row.ask("generate", "impossible"))

    def exits(row: Row) -> str:
        raise SystemExit(3)

    def endless(row: Row) -> str:
        while True:
            pass

    def stubborn(row: Row) -> str:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    def fine(row: Row) -> str:
        return str(row.ask("generate", "fine"))

    works = {
        "a": raises,
        "b": impossible,
        "c": exits,
        "d": endless,
        "e": stubborn,
        "f": fine,
    }
    asked, threads = Asked(), threading.active_count()
    outcomes = list(gather(list(works.items()), {"generate": asked}, live=6, seconds=0.5))
    told = {one.row_id: one.problem for one in outcomes}
    assert told["a"] == "lines"
    assert "too long" in told["b"]
    assert told["c"] == "SystemExit: 3"
    assert told["d"] == told["e"] == "time limit: 0.5 s of its own"
    assert outcomes[-1] == Outcome("f", "<fine>")
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == threads, "an endless hook still runs"


def test_an_engine_that_dies_ends_the_step() -> None:
    def die(questions: list[str]) -> list[str]:
        raise StepFailed("out of memory")

    tasks = [("a", lambda row: str(row.ask("generate", "q")))]
    with pytest.raises(StepFailed, match="out of memory"):
        list(gather(tasks, {"generate": die}, live=2, seconds=5))


def test_answers_survive_a_kill(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def compute(questions: list[str]) -> list[str]:
        calls.append(questions)
        return [one.upper() for one in questions]

    for _ in range(2):
        answer = Answers(tmp_path / "answers.jsonl").remembered("k", compute, str)
        assert answer(["a", "b", "a"]) == ["A", "B", "A"]
    assert calls == [["a", "b"]]
    with (tmp_path / "answers.jsonl").open("a") as stream:
        stream.write('{"key": "cut')
    answers = Answers(tmp_path / "answers.jsonl")
    assert answers.remembered("k", compute, str)(["b", "c"]) == ["B", "C"]
    assert answers.remembered("other", compute, str)(["a"]) == ["A"]
    assert calls == [["a", "b"], ["c"], ["a"]]
    again = Answers(tmp_path / "answers.jsonl").remembered("k", compute, str)
    assert again(["a", "b", "c"]) == ["A", "B", "C"]
    assert len(calls) == 3


def test_a_corpus_finds_passages_by_their_words(tmp_path: Path) -> None:
    rows = [
        {"id": "rivers", "text": "the river of Baka is Ul"},
        {"id": "kings", "text": "the king of Baka is Ivo"},
        {"id": "long", "text": "word " * 250 + "zebra"},
    ]
    write_lines(tmp_path / "facts.jsonl", rows)
    corpus = Corpus(tmp_path / "facts.jsonl")
    assert [one.id for one in corpus.retrieve("which king has Baka?", 2)] == ["kings", "rivers"]
    assert [one.id for one in corpus.retrieve("zebra", 4)] == ["long#1"]
    assert corpus.retrieve("nothing", 4) == []
    assert len(corpus.passages()) == 4
    with pytest.raises(BadInput, match=r"expected a \.jsonl"):
        Corpus(tmp_path / "none.jsonl")


def test_templates_name_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "ask.jinja").write_text("What is {{ a }} and {{ b }}?\n")
    hooks = str(tmp_path / "hooks.py")
    assert fill(hooks, "ask", a=1, b="<2>") == "What is 1 and <2>?"
    with pytest.raises(BadInput, match=r"ask.jinja: .*'b' is undefined"):
        fill(hooks, "ask", a=1)
    with pytest.raises(BadInput, match=r"other\.jinja"):
        fill(hooks, "other")


def test_a_reply_is_a_text_that_knows_how_it_ended() -> None:
    cut = Reply("half a sen", finished=False)
    assert (cut + "tence", cut.finished, Reply("x").finished) == ("half a sentence", False, True)


HOOKS = '''
"""Sums, made and mended."""
from posttrain.hooks import fill
from posttrain.rows import Example, Message, Prompt


def prompts(request, handle):
    assert handle.options["breaks_at"] >= 0
    for n in range(request.num):
        yield Prompt(
            prompt=(Message(role="user", content=f"{n}+{request.round}=?"),),
            capability="sums",
            level=1,
            reference={"answer": str(n + request.round)},
        )


def verify(candidate, prompt, handle):
    from posttrain.hooks import Verdict

    assert handle.options["breaks_at"] >= 0
    right = candidate.response.strip() == prompt.reference["answer"]
    return Verdict(right, f"expected {prompt.reference['answer']}")


def revise(candidate, prompt, verdict, handle):
    n = int(prompt.prompt[-1].content.partition("+")[0])
    if n % 3 == 0:
        return None
    right = verdict.evidence.removeprefix("expected ")
    # The first try of some is still wrong.
    return "wrong" if n % 3 == 2 and "+" not in candidate.id else right


def synthesize(prompt, handle):
    text = prompt.prompt[-1].content
    n = int(text.partition("+")[0])
    if n == handle.options["breaks_at"]:
        raise RuntimeError("this one breaks")
    first = handle.generate(prompt.prompt, max_tokens=4, n=2)
    again = handle.generate(prompt.prompt, max_tokens=4, n=2)
    assert first != again or not any(first), "the second time other responses are drawn"
    found = handle.retrieve("facts", text)
    for number in (1, 1, 2):
        if number == 2 and n % 2:
            continue
        answer = fill(__file__, "answer", value=prompt.reference["answer"], number=number)
        yield Example(
            id=f"{prompt.id}/{number}",
            messages=(*prompt.prompt, Message(role="assistant", content=answer)),
            capability="sums",
            source=f"step {number}",
            parents=tuple(one.id for one in found[:1]),
        )
'''
RECIPE = """
name: sums
hooks: [prompts, verify, revise, synthesize]
k: 2
max_tokens: 8
options: {breaks_at: BREAKS}
corpora: {facts: data/facts.jsonl}
"""
ROUNDS = [
    {
        "prompts": [
            {"type": "hook", "recipe": "math", "num": 12, "options": {"levels": [1]}},
            {"type": "hook", "recipe": "sums", "num": 24},
        ],
        "preferences": ["data/pairs.jsonl"],
    }
]
SUMS = ["--set", 'mix={"math": 0.5, "sums": 0.5}', "--set", f"rounds={json.dumps(ROUNDS)}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = new_workspace(tmp_path_factory.mktemp("hooks") / "ws")
    recipe = made / "recipes" / "sums"
    (recipe / "prompts").mkdir(parents=True)
    (recipe / "hooks.py").write_text(HOOKS)
    trained = [
        n
        for n in range(24)
        if split_of([Message(role="user", content=f"{n}+1=?")], 0.3, 0.3) == "train"
    ]
    (recipe / "recipe.yaml").write_text(RECIPE.replace("BREAKS", str(trained[2])))
    (recipe / "prompts" / "answer.jinja").write_text("{{ value }}{{ '!' * (number - 1) }}")
    write_lines(
        made / "data" / "facts.jsonl", [{"id": f"f{n}", "text": f"{n} 1"} for n in range(9)]
    )
    return made


def rows_of(folder: Path, step: str, name: str) -> list[dict[str, Any]]:
    text = (published(folder, step) / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_recipe_makes_and_mends_examples_in_a_round(folder: Path) -> None:
    ended = at(folder, "round", "1", *SUMS)
    assert ended.code == 0, ended.err
    made = rows_of(folder, "round-1/synthesize", "examples")
    assert {row["source"] for row in made} == {"sums.synthesize/step 1", "sums.synthesize/step 2"}
    prompts = {row["id"] for row in rows_of(folder, "round-1/prompts", "train")}
    assert all(row["parents"][0] in prompts and row["round"] == 1 for row in made)
    assert any(row["parents"][1:] == ["f1"] for row in made)
    told = manifest(folder, "round-1/synthesize")["metrics"]["synthesized"]["sums"]
    dropped = [row["reason"] for row in rows_of(folder, "round-1/synthesize", "dropped")]
    assert dropped.count("sums.synthesize: RuntimeError: this one breaks") == told["failed"] == 1
    assert dropped.count("sums.synthesize, an example twice") == told["prompts"] - 1
    assert len({row["id"] for row in made}) == len(made) == told["examples"]

    repaired = [r for r in rows_of(folder, "round-1/revise", "responses") if r.get("revisions")]
    assert {row["revisions"] for row in repaired} == {1, 2}
    for row in repaired:
        n = int(row["messages"][-2]["content"].partition("+")[0])
        assert row["messages"][-1]["content"] == str(n + 1)
        assert n % 3 == row["revisions"]
        assert row["parents"]
    told_of = rows_of(folder, "round-1/revise", "dropped")
    assert {row["reason"] for row in told_of} == {"sums.revise: gave up"}
    (part,) = manifest(folder, "round-1/revise")["funnel"]
    assert part["rows_in"] - part["rows_out"] == len(told_of)
    metrics = manifest(folder, "round-1/revise")["metrics"]
    assert metrics["sums: repaired"] == len(repaired)
    selected = {row["id"] for row in rows_of(folder, "round-1/select", "selected")}
    assert selected & {row["id"] for row in repaired}

    scored = rows_of(folder, "round-1/score", "synthesized")
    assert {row["id"] for row in scored} == {row["id"] for row in made}
    assert all(isinstance(row["score"], float) for row in scored)
    trained = {row["id"] for row in rows_of(folder, "round-1/curate", "train")}
    left_out = {row["id"] for row in rows_of(folder, "round-1/curate", "dropped")}
    assert {row["id"] for row in made} <= trained | left_out
    assert trained & {row["id"] for row in made}


def test_a_recipe_that_fails_too_often_stops(folder: Path) -> None:
    broken = "recipes.sums.options.breaks_at=0"
    text = HOOKS.replace("if n == handle", "if n >= handle")
    (folder / "recipes" / "sums" / "hooks.py").write_text(text)
    ended = at(folder, "round", "1", *SUMS, "--set", broken, "--redo-stale")
    (folder / "recipes" / "sums" / "hooks.py").write_text(HOOKS)
    assert ended.code == 0, ended.err
    reasons = [row["reason"] for row in rows_of(folder, "round-1/synthesize", "dropped")]
    told = manifest(folder, "round-1/synthesize")["metrics"]["synthesized"]["sums"]
    assert told["failed"] == told["prompts"] == len(reasons)
    assert "sums.synthesize: not reached: the recipe stopped" in reasons
    assert reasons.count("sums.synthesize: RuntimeError: this one breaks") < len(reasons) / 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("    yield 'text'", "TypeError: yielded str, expected an Example"),
        ("    handle.judge('nothing', {})\n    yield 1", "nothing"),
        ("    handle.retrieve('books', 'x')\n    yield 1", "corpus books is none of"),
        ("    fill(__file__, 'answer', value=1)\n    yield 1", "'number' is undefined"),
    ],
)
def test_what_hooks_do_wrong_is_named(folder: Path, line: str, reason: str) -> None:
    head = HOOKS.partition("def synthesize")[0]
    (folder / "recipes/sums/hooks.py").write_text(
        f"{head}def synthesize(prompt, handle):\n{line}\n"
    )
    everything = ["--set", "recipes.sums.max_failed=1", "--redo-stale"]
    ended = at(folder, "round", "1", *SUMS, *everything)
    (folder / "recipes" / "sums" / "hooks.py").write_text(HOOKS)
    assert ended.code == 0, ended.err
    dropped = rows_of(folder, "round-1/synthesize", "dropped")
    assert dropped
    assert all(row["reason"].startswith("sums.synthesize: ") for row in dropped)
    assert all(reason in row["reason"] for row in dropped)


OF_SEEDS = """

def judge(candidate, prompt, handle):
    from posttrain.hooks import Grade

    if candidate.id.endswith("/0"):
        raise ValueError("no opinion")
    return Grade(2, 2, "as good as it gets")


def synthesize(prompt, handle):
    from posttrain.hooks import Rejected

    text = prompt.reference["text"]
    number = int(text.split()[0])
    assert prompt.prompt[-1].content == text
    if number % 3 == 0:
        yield Rejected("a multiple of three", text)
    if number % 3 == 1:
        turns = (Message(role="user", content=f"{number}+1=?"),)
        answer = Message(role="assistant", content=str(number + 1))
        yield Example(messages=(*turns, answer), capability="sums")
"""


def test_seeds_are_read_rejects_are_counted_and_a_recipe_grades(folder: Path) -> None:
    head = HOOKS.partition("def synthesize")[0]
    (folder / "recipes/sums/hooks.py").write_text(head + OF_SEEDS)
    write_lines(folder / "data" / "texts.jsonl", [{"text": f"{n} apples"} for n in range(60)])
    seeds = [{"type": "texts", "recipe": "sums", "path": "data/texts.jsonl", "num": 50}]
    own = ["recipes.sums.hooks=[prompts, verify, synthesize, judge]"]
    own.append(f"recipes.sums.seeds={json.dumps(seeds)}")
    words = [word for one in own for word in ("--set", one)]
    ended = at(folder, "round", "1", *SUMS, *words, "--redo-stale")
    (folder / "recipes" / "sums" / "hooks.py").write_text(HOOKS)
    assert ended.code == 0, ended.err

    read = rows_of(folder, "round-1/prompts", "seeds")
    held = [r for r in rows_of(folder, "round-1/prompts", "dropped") if "seed" in r["reason"]]
    assert len(read) + len(held) == 50 and held
    told = manifest(folder, "round-1/synthesize")["metrics"]["synthesized"]["sums"]
    numbers = [int(row["reference"]["text"].split()[0]) for row in read]
    assert told["prompts"] == len(read) and told["failed"] == 0
    assert told["rejected"]["a multiple of three"] == sum(n % 3 == 0 for n in numbers)
    made = rows_of(folder, "round-1/synthesize", "examples")
    assert told["examples"] == len(made) > 0
    # What would be a held-out prompt is never trained on.
    assert told["rejected"]["held out"] == sum(n % 3 == 1 for n in numbers) - len(made) > 0
    for row in made:
        assert split_of([Message.model_validate(row["messages"][0])], 0.3, 0.3) == "train"
    reasons = [row["reason"] for row in rows_of(folder, "round-1/synthesize", "dropped")]
    assert reasons.count("sums.synthesize, made nothing") == sum(n % 3 == 2 for n in numbers)
    (part,) = manifest(folder, "round-1/synthesize")["funnel"]
    assert part["rows_in"] - part["rows_out"] == len(reasons)
    assert part["dropped"]["sums.synthesize, a multiple of three"] == sum(
        n % 3 == 0 for n in numbers
    )

    graded = rows_of(folder, "round-1/grade", "selected")
    sums = [row for row in graded if row["capability"] == "sums"]
    first = [row for row in sums if row["id"].endswith("/0")]
    assert all(row.get("grade") is None for row in first)
    assert all(row["grade"] == {"score": 2, "maximum": 2} for row in sums if row not in first)
    failed = manifest(folder, "round-1/grade")["metrics"]["failed"]
    assert sum(failed.values()) == len(first)


def test_a_control_token_in_a_question_costs_its_row_alone(tmp_path: Path) -> None:
    def work(text: str, handle: Handle) -> str:
        (reply,) = handle.generate([Message(role="user", content=text)], max_tokens=4)
        return reply

    stage = HookStage(
        round=1,
        seed=0,
        sampling=Sampling(),
        judge=NoJudge(),
        embedder="minilm",
        recipes={"math": RecipeSettings(name="math", max_failed=1.0)},
    )
    inputs = Inputs(
        {"policy": ROOT / "rounds/tiny/base"},
        Workspace(ROOT),
        Resources(device="cpu"),
        tmp_path / "machine.json",
    )
    out = Output(tmp_path / "out", lambda done, total: None)
    asked = {"a": "1+1=?", "b": "1<|eot_id|>+1=?", "c": "2+2=?"}
    tasks = [(name, partial(work, text)) for name, text in asked.items()]
    with closing(HookRows(inputs, stage, out)) as hooks:
        found = list(hooks.run("math", "test", tasks))
    assert [bool(one.problem) for one in found] == [False, True, False]
    assert "control token" in found[1].problem
