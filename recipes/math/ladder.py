"""Arithmetic on a ladder of six levels: questions with known answers, for measuring and trials.

Knows sums, differences and products. Knows no model and keeps no state: a prompt depends on the
seed alone.

    list(questions(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]})))
"""

import functools
from collections.abc import Iterable

from posttrain.hooks import PromptRequest
from posttrain.ladders import places
from posttrain.rows import Message, Prompt

LEVELS = (1, 2, 3, 4, 5, 6)
"""1: a two-digit and a one-digit number, no carry. 2: two-digit sum, no carry. 3: with carry.
4: two-digit difference. 5: a one-digit times a two-digit number. 6: a+b-c, or a three-digit sum."""


def questions(request: PromptRequest) -> Iterable[Prompt]:
    """`request.num` different questions, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    sizes = {level: num_questions(level) for level in LEVELS}
    for level, index in places(request, "math", sizes):
        yield _prompt(_expression(level, index), level)


def num_questions(level: int) -> int:
    """How many different questions a level has."""
    return 90**3 + 900**2 if level == 6 else len(_listed(level))


Expression = tuple[int, str, int, str, int]
"""A question as (a, operator, b, operator or "", c)."""


@functools.cache
def _listed(level: int) -> list[Expression]:
    two_digit = range(10, 100)
    if level == 1:
        pairs = [(a, b) for a in two_digit for b in range(10) if a % 10 + b < 10]
        return [(a, "+", b, "", 0) for a, b in pairs]
    if level == 4:
        return [(a, "-", b, "", 0) for a in two_digit for b in two_digit if a >= b]
    if level == 5:
        return [(a, "*", b, "", 0) for a in range(2, 10) for b in range(11, 100)]
    pairs = [(a, b) for a in two_digit for b in two_digit]
    return [(a, "+", b, "", 0) for a, b in pairs if _carries(a, b) == (level == 3)]


def _expression(level: int, index: int) -> Expression:
    """The question at a place of its level; level 6 is too large to list."""
    if level < 6:
        return _listed(level)[index]
    if index < 90**3:
        return 10 + index // 8100, "+", 10 + index // 90 % 90, "-", 10 + index % 90
    index -= 90**3
    return 100 + index // 900, "+", 100 + index % 900, "", 0


def _carries(a: int, b: int) -> bool:
    return a % 10 + b % 10 > 9 or a // 10 + b // 10 > 9


def _prompt(expression: Expression, level: int) -> Prompt:
    a, first, b, second, c = expression
    value = {"+": a + b, "-": a - b, "*": a * b}[first] - (c if second else 0)
    text = f"{a}{first}{b}" + (f"{second}{c}" if second else "") + "=?"
    return Prompt(
        prompt=(Message(role="user", content=text),),
        capability="math",
        source="math/prompts",
        level=level,
        reference={"answer": str(value)},
    )
