"""The seven recipes, step by step, with a scripted model: what each keeps and what it throws away.

The sandbox is real; the model is a script that knows the recipes' templates by a few words.
The tiny plan runs the same code with a real model (tests/test_loop.py).

pytest tests/test_recipes.py
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import BadInput
from posttrain.hooks import Grade, Passage, Rejected, Reply, RunResult
from posttrain.languages import language
from posttrain.recipes.texts import drawn, functions, standard_library
from posttrain.rows import Candidate, Example, Message, Prompt, check_dialog
from posttrain.sandbox import Sandbox, available
from posttrain.settings.sources import TextSource
from posttrain.symbolic import final_answer, same_answer
from posttrain.workspace import Workspace, load_functions, load_recipe_settings

pytestmark = pytest.mark.skipif(
    not available() and os.environ.get("CI") != "true", reason="bubblewrap is missing"
)
ROOT = Path(__file__).resolve().parent.parent
Script = Callable[[str, int], str | list[str]]
"""The last user turn and how often it was asked → the reply or replies."""


class Scripted:
    """A handle whose model is a script, and whose judge gives the points it is told to."""

    def __init__(
        self,
        recipe: str,
        script: Script,
        judge: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        settings = load_recipe_settings(Workspace(ROOT), recipe, {})
        self.options: Mapping[str, Any] = {**settings.options, **options}
        self._script, self._judge = script, judge or {}
        self.asked: list[list[Message]] = []
        self.tools: list[Sequence[Mapping[str, Any]]] = []
        self._sandbox = Sandbox()

    def generate(
        self, messages: Sequence[Message], *, n: int = 1, tools: Any = (), **rest: Any
    ) -> list[Reply]:
        """What the script says."""
        self.asked.append(list(messages))
        self.tools.append(tools)
        before = sum(one == list(messages) for one in self.asked) - 1
        said = self._script(messages[-1].content, before)
        several = said if isinstance(said, list) else [said] * n
        assert len(several) == n
        return [Reply(one) for one in several]

    def judge(self, rubric: str, variables: Mapping[str, Any]) -> Grade | None:
        """The points that were agreed."""
        points = self._judge[rubric]
        return points(variables) if callable(points) else points

    def run_code(self, source: str, **settings: Any) -> RunResult:
        """The real sandbox."""
        return self._sandbox.run(source, **settings)

    def retrieve(self, corpus: str, query: str, k: int = 4) -> list[Passage]:
        """One passage."""
        return [Passage("p", f"{corpus}: about {query}", 1.0)]

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Texts are alike whose first words are equal."""
        return [[1.0, 0.0] if text.startswith("How") else [0.0, 1.0] for text in texts]


def hooks(recipe: str) -> Mapping[str, Callable[..., Any]]:
    """The functions of a recipe, as the engine finds them."""
    return load_functions(ROOT / "recipes" / recipe / "hooks.py")


def seed(recipe: str, text: str, **reference: Any) -> Prompt:
    """A row that `synthesize` starts from."""
    return Prompt(
        prompt=(Message(role="user", content=text),),
        capability=recipe,
        reference={"text": text, **reference},
    )


def made(recipe: str, prompt: Prompt, handle: Scripted) -> list[Example | Rejected]:
    """What `synthesize` yields."""
    return list(hooks(recipe)["synthesize"](prompt, handle))


def only(recipe: str, prompt: Prompt, handle: Scripted) -> Example | Rejected:
    """The one thing it yields."""
    (one,) = made(recipe, prompt, handle)
    return one


# Code

SNIPPET = "def double(x):\n    return 2 * x"
GOOD = "Add.\n```python\ndef add(a, b):\n    return a + b\n```"
BAD = "```python\ndef add(a, b):\n    return a - b\n```"
PERL = """```perl
sub add { return $_[0] + $_[1] }
print add(1, 2), "\\n", add(0, 0), "\\n";
```"""
TESTS = "```python\nassert add(1, 2) == 3\nassert add(0, 0) == 0\n```"


def coder(solution: str, repaired: str = GOOD, tests: str = TESTS) -> Script:
    """A model that writes this solution first, and that one when told of a fault."""

    def script(text: str, before: int) -> str:
        if "taken at random" in text:
            return "Write add(a, b), which returns the sum of a and b."
        if text.startswith("Solve this problem"):
            return solution
        if "Write tests" in text:
            return tests
        if text.startswith(("That does not work", "The solution passes")):
            return repaired
        if text.startswith("Explain this code"):
            return "It doubles a number."
        if text.startswith("Write the Python code that this describes"):
            return f"```python\n{SNIPPET}\n```"
        if text.startswith("Translate this Python code"):
            return PERL
        raise AssertionError(text)

    return script


def test_code_that_passes_at_once_and_code_that_is_repaired_are_told_apart() -> None:
    for solution, how in ((GOOD, "first_try"), (BAD, "repaired")):
        one = only(
            "code",
            seed("code", SNIPPET),
            Scripted("code", coder(solution), makes=["feedback"], polish=0),
        )
        assert isinstance(one, Example) and one.source == how
        assert [turn.content for turn in one.messages] == [
            "Write add(a, b), which returns the sum of a and b.",
            GOOD,
        ]


def test_a_repair_sees_what_the_program_did() -> None:
    handle = Scripted("code", coder(BAD), makes=["feedback"], polish=0)
    made("code", seed("code", SNIPPET), handle)
    told = handle.asked[-1][-1].content
    assert "AssertionError" in told and "exit status 1" in told and "add(1, 2) == 3" in told


def test_wrong_tests_can_be_repaired_too() -> None:
    wrong = "```python\nassert add(1, 2) == 4\n```"
    handle = Scripted(
        "code", coder(GOOD, repaired=TESTS, tests=wrong), makes=["feedback"], polish=0
    )
    one = only("code", seed("code", SNIPPET), handle)
    assert isinstance(one, Example) and one.source == "repaired"
    assert one.messages[-1].content == GOOD


@pytest.mark.parametrize(
    ("solution", "fault"),
    [
        ("```python\ndef add(a, b:\n```", "cannot be parsed"),
        ("```python\nimport os\ndef add(a, b):\n    return a + c\n```", "linter says"),
        ("```python\nwhile True: pass\n```", "ended with time"),
        (BAD, "exit status 1"),
    ],
)
def test_code_that_never_passes_is_thrown_away_with_its_fault(solution: str, fault: str) -> None:
    handle = Scripted("code", coder(solution, repaired=solution), makes=["feedback"], repairs=1)
    one = only("code", seed("code", SNIPPET), handle)
    assert isinstance(one, Rejected) and one.reason == "never passes its tests"
    assert fault in one.detail


def test_what_the_judge_does_not_like_is_revised_and_not_dropped() -> None:
    def points(variables: Mapping[str, Any]) -> Grade:
        return Grade(2 if "Better" in variables["response"] else 1, 2)

    better = "Better.\n```python\ndef add(first, second):\n    return first + second\n```"
    for polish, kept in ((1, True), (0, True)):
        handle = Scripted(
            "code", coder(GOOD, better), {"code_style": points}, makes=["feedback"], polish=polish
        )
        one = only("code", seed("code", SNIPPET), handle)
        assert isinstance(one, Example) is kept
        assert isinstance(one, Example) and one.source == ("polished" if polish else "first_try")
    handle = Scripted(
        "code", coder(GOOD, GOOD), {"code_style": points}, makes=["feedback"], polish=2
    )
    assert isinstance(only("code", seed("code", SNIPPET), handle), Rejected)


def test_a_translation_must_run_and_print_the_same() -> None:
    handle = Scripted(
        "code", coder(GOOD), makes=["translation"], polish=0, languages=["perl", "cobol"]
    )
    with pytest.raises(BadInput, match="no language 'cobol'"):
        made("code", seed("code", SNIPPET), handle)
    handle = Scripted("code", coder(GOOD), makes=["translation"], polish=0, languages=["perl"])
    one = only("code", seed("code", SNIPPET), handle)
    assert isinstance(one, Example) and one.source == "translation/perl"
    wrong = coder(GOOD)
    handle = Scripted(
        "code",
        lambda text, n: "```perl\nprint 1\n```" if "perl" in text else wrong(text, n),
        makes=["translation"],
        polish=0,
        languages=["perl"],
    )
    rejected = only("code", seed("code", SNIPPET), handle)
    assert isinstance(rejected, Rejected) and rejected.reason == "perl: other results"


def test_an_explanation_is_kept_if_the_code_comes_back_from_it() -> None:
    for points, kind in ((3, Example), (2, Rejected)):
        handle = Scripted(
            "code", coder(GOOD), {"code_faithful": Grade(points, 3)}, makes=["backtranslation"]
        )
        assert isinstance(only("code", seed("code", SNIPPET), handle), kind)


def test_snippets_of_the_standard_library_are_whole_functions() -> None:
    source = TextSource(
        type="texts", recipe="code", path="stdlib", num=40, unit="function", longest=80
    )
    rows = drawn(source, standard_library(), 3)
    assert rows == drawn(source, standard_library(), 3) != drawn(source, standard_library(), 4)
    assert len({row.id for row in rows}) == 40
    for row in rows:
        assert functions(str(row.reference["text"])) == [row.reference["text"]]


# Math


def solver(answers: list[str], confirmed: str = "yes") -> Script:
    """A model whose solutions end with these answers."""

    def script(text: str, before: int) -> str | list[str]:
        if text.startswith("Here is a piece of text"):
            return "How many legs have three spiders?"
        if "Reason step by step" in text:
            return [rf"Step.{'!' * n} \boxed{{{answer}}}" for n, answer in enumerate(answers)]
        if "strict examiner" in text:
            return confirmed
        if "mixture of reasoning and Python" in text:
            return "Multiply.\n```python\nprint(3 * 8)\n```\nDone."
        if "Its answer is wrong" in text:
            return r"Spiders have eight legs. \boxed{24}"
        raise AssertionError(text)

    return script


def test_solutions_that_agree_are_kept_and_mistakes_put_right() -> None:
    answers = ["24", r"\frac{48}{2}", "18", "24.0"]
    rows = made("math", seed("math", "spiders"), Scripted("math", solver(answers), traces=4))
    kinds = [row.source.split("/")[0] for row in rows if isinstance(row, Example)]
    assert kinds == ["traces", "programs", "mistakes"]
    trace, program, mistake = (row for row in rows if isinstance(row, Example))
    assert trace.messages[-1].content == r"Step. \boxed{24}"
    assert program.messages[-1].content.endswith("The program prints 24.\n\n\\boxed{24}")
    assert r"\boxed{18}" in mistake.messages[0].content


@pytest.mark.parametrize(
    ("answers", "confirmed", "reason"),
    [
        (["1", "2", "3", "4"], "yes", "solutions disagree"),
        (["24", "24", "24", "24"], "no", "no solution confirmed"),
    ],
)
def test_a_question_whose_answer_is_not_sure_is_thrown_away(
    answers: list[str], confirmed: str, reason: str
) -> None:
    handle = Scripted("math", solver(answers, confirmed), traces=4, makes=["traces"])
    one = only("math", seed("math", "spiders"), handle)
    assert isinstance(one, Rejected) and one.reason == reason


def test_a_known_answer_outvotes_the_majority() -> None:
    prompt = Prompt(
        prompt=(Message(role="user", content="3 spiders?"),),
        capability="math",
        reference={"answer": "24"},
    )
    handle = Scripted("math", solver(["18", "18", "24", "24"]), traces=4, makes=["traces"])
    one = only("math", prompt, handle)
    assert isinstance(one, Example) and final_answer(one.messages[-1].content) == "24"


def test_a_process_reward_model_refuses_solutions_with_a_weak_step() -> None:
    for percent, kind in ((80, Example), (20, Rejected)):
        handle = Scripted(
            "math",
            solver(["24"] * 4),
            {"steps": Grade(percent, 100)},
            traces=4,
            makes=["traces"],
            step_score=50,
        )
        assert isinstance(only("math", seed("math", "spiders"), handle), kind)


@pytest.mark.parametrize(
    ("stated", "expected", "same"),
    [
        ("0.5", "1/2", True),
        (r"\frac{1}{2}", "0.5", True),
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("1,234", "1234", True),
        ("(1,2)", "(2,1)", False),
        ("3", "4", False),
        ("", "", False),
        ("9^{9^{9^9}}", "1", False),
        ("__import__('os').system('true')", "0", False),
    ],
)
def test_answers_are_compared_by_what_they_mean(stated: str, expected: str, same: bool) -> None:
    assert same_answer(stated, expected) is same


# Languages

GERMAN = "Wie viele Beine haben drei Spinnen zusammen, wenn jede acht Beine hat?"


def translator(translated: str, back: str, solution: str) -> Script:
    def script(text: str, before: int) -> str | list[str]:
        if text.startswith("Translate this question"):
            return translated
        if text.startswith("Translate this to English"):
            return back
        return [solution, solution]

    return script


@pytest.mark.parametrize(
    ("translated", "back", "solution", "reason"),
    [
        (
            GERMAN,
            "How many legs?",
            r"Drei Spinnen haben zusammen vierundzwanzig Beine. \boxed{24}",
            "",
        ),
        (GERMAN, "Spiders?", r"\boxed{24}", "de: translation says something else"),
        (GERMAN, "How many legs?", r"\boxed{23}", "de: another answer"),
        (
            "How many legs do three spiders have together if each has eight legs?",
            "How many legs?",
            r"\boxed{24}",
            "de: translation in another language",
        ),
        (
            GERMAN,
            "How many legs?",
            r"Three spiders with eight legs each have twenty-four legs together. \boxed{24}",
            "de: solved in another language",
        ),
    ],
)
def test_reasoning_is_translated_if_meaning_answer_and_language_hold(
    translated: str, back: str, solution: str, reason: str
) -> None:
    assert language(GERMAN, ("de", "en")) == "de"
    prompt = Prompt(
        prompt=(Message(role="user", content="How many legs have three spiders?"),),
        capability="multilingual",
        reference={"answer": "24"},
    )
    script = translator(translated, back, solution)
    one = only("multilingual", prompt, Scripted("multilingual", script, into=["de"], solutions=2))
    if reason:
        assert isinstance(one, Rejected) and one.reason == reason
    else:
        assert isinstance(one, Example) and one.source == "reasoning/de"


# Long contexts


def test_a_document_is_asked_about_in_parts_and_summarized_from_summaries() -> None:
    text = "\n".join(f"Line {number} of the book." for number in range(400))

    def script(asked: str, before: int) -> str:
        if "Write a question" in asked:
            return "What does a line say?"
        if "Answer this question" in asked:
            return "Its number."
        return "Lines." if "Here is part" in asked else "A book of lines."

    handle = Scripted("long_context", script, buckets=[500, 2000, 9000], chunk=600)
    rows = made("long_context", seed("long_context", text), handle)
    sources = [row.source for row in rows if isinstance(row, Example)]
    assert sources == ["questions/2k"] * 3 + ["summary/2k"]
    assert all(
        isinstance(row, Example) and row.messages[0].content.startswith(text[:8000]) for row in rows
    )
    summary = rows[-1]
    assert isinstance(summary, Example) and summary.messages[-1].content == "A book of lines."
    short = only("long_context", seed("long_context", "short"), handle)
    assert isinstance(short, Rejected) and short.reason == "shorter than every bucket"


def test_a_file_that_others_import_is_taken_out_of_a_repository() -> None:
    files = {f"shop/page{n}.py": f"from shop.prices import total\nx = {n}\n" for n in range(5)}
    files |= {
        "shop/prices.py": "def total(items):\n    return sum(items)\n",
        "shop/lone.py": "import os\n",
    }
    prompt = seed("long_context", "the repository shop", files=files)
    handle = Scripted("long_context", lambda text, n: "", buckets=[10])
    one = only("long_context", prompt, handle)
    assert isinstance(one, Example) and one.source == "repository/0k"
    asked, said = (turn.content for turn in one.messages)
    assert "def total" not in asked and "def total" in said
    assert said.count("- shop/page") == 5 and "lone" not in said
    alone = seed("long_context", "the repository lone", files={"a.py": "", "b.py": "import a\n"})
    rejected = only("long_context", alone, handle)
    assert isinstance(rejected, Rejected) and rejected.reason == "no file that 5 others import"


# Tools


def caller(*turns: str) -> Script:
    """A model whose answers to anything but requests come in this order."""
    left = list(turns)

    def script(text: str, before: int) -> str:
        if "Write what a user might ask" in text:
            return "How much is 2+3?"
        if "what the user asks next" in text:
            return "And twice that?"
        return left.pop(0)

    return script


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


SUM = call("calculator", expression="2+3")


@pytest.mark.parametrize(
    ("kind", "turns", "results"),
    [
        ("single", [SUM, "It is 5."], ["5"]),
        ("parallel", [SUM + "\n" + call("calculator", expression="4*5"), "5 and 20."], ["5", "20"]),
        ("nested", [SUM, call("calculator", expression="5*2"), "10."], ["5", "10"]),
        ("multi_turn", [SUM, "5.", call("calculator", expression="5*2"), "10."], ["5", "10"]),
        ("single", [call("python", code="print(6*7)"), "42."], ["42"]),
        ("single", [call("search", query="cats"), "Cats."], ['["search: about cats"]']),
        (
            "single",
            [call("convert_units", value=3, from_unit="km", to_unit="m"), "3000 m."],
            ['{"value": 3000.0, "unit": "m"}'],
        ),
    ],
)
def test_calls_are_made_in_the_templates_own_form_and_executed(
    kind: str, turns: list[str], results: list[str]
) -> None:
    handle = Scripted("tool_use", caller(*turns), kinds=[kind], shown=9)
    one = only("tool_use", seed("tool_use", "sums"), handle)
    assert isinstance(one, Example) and one.source == kind, one
    check_dialog(one.messages)
    assert [turn.content for turn in one.messages if turn.role == "tool"] == results
    assert one.tools is not None and {"calculator", "search"} <= {
        tool["function"]["name"] for tool in one.tools
    }


@pytest.mark.parametrize(
    ("kind", "turns", "reason"),
    [
        ("single", ["Just 5."], "single: other calls than asked for"),
        ("parallel", [SUM, "5."], "parallel: other calls than asked for"),
        ("single", ['{"name": "calculator"', "5."], "single: calls that are no JSON"),
        ("single", [call("calculator", sum="2+3")], "single: arguments against their schema"),
        ("single", [call("oracle", x=1)], "single: arguments against their schema"),
        ("single", [call("calculator", expression="2+")], "single: calls that fail"),
        ("single", [call("calculator", expression="__import__('os')")], "single: calls that fail"),
        ("single", [call("python", code="raise SystemExit(3)")], "single: calls that fail"),
        ("single", [SUM] * 9, "single: no end"),
    ],
)
def test_calls_that_are_wrong_are_counted_by_what_is_wrong(
    kind: str, turns: list[str], reason: str
) -> None:
    handle = Scripted("tool_use", caller(*turns), kinds=[kind], shown=9)
    one = only("tool_use", seed("tool_use", "sums"), handle)
    assert isinstance(one, Rejected) and one.reason == reason


# Facts


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        (["Rome"] * 8 + ["Oslo"] * 2, "known"),
        (["Oslo"] * 9 + ["Rome"], "refusal"),
        (["Oslo"] * 5 + ["Rome"] * 5, ""),
        (["I do not know"] * 10, ""),
    ],
)
def test_the_probe_refuses_what_the_model_is_sure_of_and_wrong_about(
    answers: list[str], outcome: str
) -> None:
    def script(text: str, before: int) -> str | list[str]:
        if "Write one question" in text:
            return "What is the capital of Italy?"
        return "I am not sure." if "You do not know" in text else answers

    points = {
        "factual": lambda v: Grade(int(v["response"] in v["text"]), 1),
        "informative": lambda v: Grade(int("not know" not in v["response"]), 1),
    }
    handle = Scripted("factuality", script, points)
    one = only("factuality", seed("factuality", "The capital of Italy is Rome."), handle)
    if not outcome:
        assert isinstance(one, Rejected)
        return
    assert isinstance(one, Example) and one.source == outcome
    assert one.messages[-1].content == ("Rome" if outcome == "known" else "I am not sure.")


# Steering


def test_an_answer_under_a_system_prompt_is_tried_again_until_it_keeps_to_it() -> None:
    def script(text: str, before: int) -> str:
        if "Write a system prompt" in text:
            return "Answer without digits."
        return "about two" if "does not keep" in text else "2"

    own = {"constraints": [["no digits"]], "num": [1, 1], "tones": [], "personas": []}
    prompt = Prompt(prompt=(Message(role="user", content="1+1?"),), capability="steerability")
    handle = Scripted("steerability", script, **own)
    one = only("steerability", prompt, handle)
    assert isinstance(one, Example) and one.source == "no digits"
    assert [turn.role for turn in one.messages] == ["system", "user", "assistant"]
    assert one.messages[-1].content == "about two"
    handle = Scripted("steerability", script, **own, repairs=0)
    rejected = only("steerability", prompt, handle)
    assert isinstance(rejected, Rejected) and rejected.reason == "breaks no digits"


def test_tone_and_role_are_the_judges() -> None:
    prompt = Prompt(prompt=(Message(role="user", content="1+1?"),), capability="steerability")
    for points, kind in ((1, Example), (0, Rejected)):
        handle = Scripted(
            "steerability",
            lambda text, n: "Two, my friend.",
            {"steered": Grade(points, 1)},
            num=[0, 0],
            tones=["warm"] * 50,
            personas=[],
        )
        one = only("steerability", prompt.model_copy(update={"id": "warm"}), handle)
        assert isinstance(one, kind)


@pytest.mark.parametrize(
    ("constraint", "kept", "broken"),
    [
        ("at most 3 words", "a b c", "a b c d"),
        ("at least 2 sentences", "A. B.", "A."),
        ("exactly 2 paragraphs", "a\n\nb", "a"),
        ("as 2 bullet points", "- a\n- b", "- a"),
        ("as 2 numbered points", "1. a\n2. b", "- a\n- b"),
        ("in JSON", '{"a": 1}', "a: 1"),
        ("under a Markdown heading", "# A\nb", "A\nb"),
        ("in upper case", "ABC", "Abc"),
        ("in lower case", "abc", "Abc"),
        ("no digits", "two", "2"),
        ("no commas", "a b", "a, b"),
        ("no exclamation marks", "a.", "a!"),
        ('the word "however"', "It is; however, no.", "It is."),
        ('no word "very"', "good", "very good"),
        ("in German", "Das ist ein ganz gewöhnlicher deutscher Satz.", "This is a plain sentence."),
        ('end with "Any questions?"', "Two. Any questions?", "Two."),
        ("end with a question mark", "Two?", "Two."),
        ('begin with "In short,"', "In short, two.", "Two."),
    ],
)
def test_constraints_are_told_by_their_words(constraint: str, kept: str, broken: str) -> None:
    verify = hooks("steerability")["verify"]
    prompt = Prompt(
        prompt=(Message(role="user", content="x"),),
        capability="steerability",
        reference={"constraints": [constraint]},
    )
    for text, passed in ((kept, True), (broken, False)):
        row = Candidate(
            prompt_id=prompt.id,
            messages=(*prompt.prompt, Message(role="assistant", content=text)),
            seed=0,
            finish_reason="stop",
            num_tokens=1,
            model="none",
        )
        assert verify(row, prompt, None).passed is passed


def test_every_constraint_that_ships_can_be_checked() -> None:
    options = load_recipe_settings(Workspace(ROOT), "steerability", {}).options
    verify = hooks("steerability")["verify"]
    for constraint in (one for kind in options["constraints"] for one in kind):
        prompt = Prompt(
            prompt=(Message(role="user", content="x"),),
            capability="steerability",
            reference={"constraints": [constraint]},
        )
        messages = (*prompt.prompt, Message(role="assistant", content="A text."))
        row = Candidate(
            prompt_id=prompt.id,
            messages=messages,
            seed=0,
            finish_reason="stop",
            num_tokens=1,
            model="none",
        )
        assert verify(row, prompt, None) is not None
    strange = prompt.model_copy(update={"reference": {"constraints": ["in rhyme"]}})
    with pytest.raises(BadInput, match="no program checks the constraint 'in rhyme'"):
        verify(row, strange, None)
