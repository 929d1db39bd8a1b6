"""Python one-liners on a ladder of six levels: problems with tests, for measuring and trials.

Knows a small language of steps on numbers, strings and lists. Runs no model's code. A prompt
depends on the seed alone.

    list(questions(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]})))
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from posttrain.errors import BadInput
from posttrain.hooks import PromptRequest
from posttrain.ladders import places
from posttrain.rows import Message, Prompt

ATOM, PRODUCT, SUM = 3, 2, 1


class Step(NamedTuple):
    """One operation: what a prompt calls it, and its code around the expression `{e}`.

    `{k}` in both is a parameter, one of `ks`. An expression that binds looser than `needs` is put
    in brackets; `gives` is how tightly the result binds.
    """

    text: str
    code: str
    ks: tuple[object, ...] = ("",)
    needs: int = ATOM
    gives: int = ATOM


FEW, WIDE = (2, 3, 4), tuple(range(2, 100))
LETTERS, ENDINGS = tuple("aeilnorstuxy"), ("ab", "xy", "no", "!")
NUMBERS = (
    Step("plus {k}", "{e}+{k}", WIDE, SUM, SUM),
    Step("minus {k}", "{e}-{k}", WIDE, SUM, SUM),
    Step("times {k}", "{e}*{k}", WIDE, PRODUCT, PRODUCT),
)
STRINGS = (
    Step("reverse", "{e}[::-1]"),
    Step("upper", "{e}.upper()"),
    Step("title", "{e}.title()"),
    Step("first {k}", "{e}[:{k}]", FEW),
    Step("last {k}", "{e}[-{k}:]", FEW),
    Step("repeat {k}", "{e}*{k}", FEW, PRODUCT, PRODUCT),
    Step("add {k!r}", "{e}+{k!r}", ENDINGS, SUM, SUM),
    Step("drop {k!r}", "{e}.replace({k!r},'')", LETTERS),
)
COUNTS = (
    Step("length", "len({e})", needs=0),
    Step("count {k!r}", "{e}.count({k!r})", LETTERS),
)
LISTS = (
    Step("reverse", "{e}[::-1]"),
    Step("sort", "sorted({e})", needs=0),
    Step("first {k}", "{e}[:{k}]", FEW),
    Step("each plus {k}", "[v+{k} for v in {e}]", WIDE),
    Step("each minus {k}", "[v-{k} for v in {e}]", WIDE),
    Step("each times {k}", "[v*{k} for v in {e}]", WIDE),
    Step("keep above {k}", "[v for v in {e} if v>{k}]", WIDE),
)
TOTALS = (
    Step("sum", "sum({e})", needs=0),
    Step("length", "len({e})", needs=0),
    Step("largest", "max({e},default=0)", needs=0),
)


def _small(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The same steps with parameters below 20, for prompts of several steps."""
    return tuple(step._replace(ks=WIDE[:18]) if step.ks is WIDE else step for step in steps)


LADDER: dict[int, tuple[str, tuple[tuple[Step, ...], ...]]] = {
    1: ("x", (NUMBERS,)),
    2: ("a", (LISTS,)),
    3: ("x", (_small(NUMBERS), _small(NUMBERS))),
    4: ("s", (STRINGS, STRINGS + COUNTS)),
    5: ("a", (LISTS, TOTALS)),
    6: ("a", (_small(LISTS), _small(LISTS), TOTALS)),
}
"""Level to the argument's name (x a number, s a string, a a list) and the steps in order."""

INPUTS: dict[str, tuple[object, ...]] = {
    "x": (0, 1, 7, -3, 25),
    "s": ("Hello you", "eelllrrrt", "ttxxxyyyox", "nuu in rust", "a"),
    "a": ([3, 1, 2], [10, 20, 5, 8, 41], [], [30, 4, 12, 9, 7, 16, 2, 19, 6]),
}


def questions(request: PromptRequest) -> Iterable[Prompt]:
    """`request.num` different problems, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    sizes = {level: num_questions(level) for level in LADDER}
    for level, index in places(request, "code", sizes):
        name, stages = LADDER[level]
        yield _prompt(name, _steps_at(stages, index), level)


def num_questions(level: int) -> int:
    """How many different problems a level has."""
    return math.prod(sum(len(step.ks) for step in stage) for stage in LADDER[level][1])


def render(name: str, steps: Sequence[tuple[Step, object]]) -> str:
    """The right response to a prompt made of these steps: one lambda."""
    expression, binds = name, ATOM
    for step, k in steps:
        inside = f"({expression})" if binds < step.needs else expression
        expression = step.code.format(e=inside, k=k)
        binds = step.gives
    return f"lambda {name}: {expression}"


def parse(text: str) -> tuple[str, list[tuple[Step, object]]]:
    """The argument's name and the steps that a prompt of this recipe asks for.

    Raises:
        BadInput: the text is no prompt of this recipe.
    """
    match = re.fullmatch(r"f\((\w)\): \w (.*)", text)
    kinds = {"x": NUMBERS, "s": STRINGS + COUNTS, "a": LISTS + TOTALS}
    if match is None or match.group(1) not in kinds:
        raise BadInput(f"expected a prompt such as `f(x): x plus 2`, got {text!r}")
    name, steps = match.group(1), []
    for part in match.group(2).split(" then "):
        known = [(s, k) for s in kinds[name] for k in s.ks if s.text.format(k=k) == part]
        if not known:
            raise BadInput(f"no step is called {part!r} in {text!r}")
        steps.append(known[0])
    return name, steps


def _steps_at(stages: Sequence[Sequence[Step]], index: int) -> list[tuple[Step, object]]:
    """The composition at a place of its level: one (step, parameter) from each stage."""
    steps = []
    for stage in stages:
        choices = [(step, k) for step in stage for k in step.ks]
        index, place = divmod(index, len(choices))
        steps.append(choices[place])
    return steps


def _prompt(name: str, steps: Sequence[tuple[Step, object]], level: int) -> Prompt:
    wanted = " then ".join(step.text.format(k=k) for step, k in steps)
    # The text of this function is ours alone, never a model's: safe to evaluate here.
    function = eval(render(name, steps))
    inputs = list(INPUTS[name])
    if name == "a":
        # Values around each parameter tell `keep above 7` from `keep above 8`.
        inputs += [[k + 1, k - 1, k] for _, k in steps if isinstance(k, int)]
    tests = [f"assert f({value!r}) == {function(value)!r}" for value in inputs]
    return Prompt(
        prompt=(Message(role="user", content=f"f({name}): {name} {wanted}"),),
        capability="code",
        source="code/prompts",
        level=level,
        reference={"tests": tests, "name": "f"},
    )
