"""Arithmetic: prompts on a ladder of six levels, and a verifier that reads the last number.

Knows sums, differences and products, and how a response states a number. Knows no model and
keeps no state: a prompt depends on the seed alone.

    list(prompts(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]}), handle))
"""

import functools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from posttrain.errors import BadInput
from posttrain.hooks import Handle, PromptRequest, Verdict
from posttrain.rows import Candidate, Message, Prompt

LEVELS = (1, 2, 3, 4, 5, 6)
"""1: a two-digit and a one-digit number, no carry. 2: two-digit sum, no carry. 3: with carry.
4: two-digit difference. 5: a one-digit times a two-digit number. 6: a+b-c, or a three-digit sum."""

FILLER = re.compile(r"(sure|certainly|of course|absolutely|great question)\b[!,.:]*\s*", re.I)
NUMBER = re.compile(r"(?<!\w)[-\u2212]?\s?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """`request.num` different questions, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    levels = _levels(request.options)
    for place, level in enumerate(levels):
        num = request.num // len(levels) + (place < request.num % len(levels))
        size = num_prompts(level)
        if num > size:
            raise BadInput(
                f"math level {level} has {size} different prompts, {num} were asked for: "
                "lower num or name more levels"
            )
        for index in random.Random(f"math/{level}/{request.seed}").sample(range(size), num):
            yield _prompt(_expression(level, index), level)


def num_prompts(level: int) -> int:
    """How many different prompts a level has."""
    return 90**3 + 900**2 if level == 6 else len(_listed(level))


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict:
    """Whether the last number of the response equals `reference["answer"]`."""
    expected = prompt.reference["answer"]
    stated = last_number(candidate.response)
    if stated is None:
        return Verdict(False, f"no number in the response, expected {expected}")
    if stated == Decimal(expected):
        return Verdict(True, f"the response ends with {stated}, as expected")
    return Verdict(False, f"the response ends with {stated}, expected {expected}")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Shares of responses with a filler and without a number, mean length, pass rate by level."""
    if not candidates:
        return {}
    texts = [candidate.response for candidate in candidates]
    measures = {
        "filler_share": sum(FILLER.match(text) is not None for text in texts) / len(texts),
        "no_number_share": sum(last_number(text) is None for text in texts) / len(texts),
        "mean_characters": sum(map(len, texts)) / len(texts),
    }
    level_of = {prompt.id: prompt.level for prompt in prompts}
    verdicts: dict[int, list[bool]] = {}
    for candidate in candidates:
        level = level_of.get(candidate.prompt_id)
        if level is not None and candidate.passed is not None:
            verdicts.setdefault(level, []).append(candidate.passed)
    for level, passed in sorted(verdicts.items()):
        measures[f"pass_rate_level_{level}"] = sum(passed) / len(passed)
    return measures


def last_number(text: str) -> Decimal | None:
    """The last number a text states; thousands separators and a full stop after it are no digits.

    A minus sign counts only where it is no subtraction: `9-5` ends with 5, `= -5` with -5.
    """
    matches = list(NUMBER.finditer(text))
    if not matches:
        return None
    digits = matches[-1].group().replace("\u2212", "-").replace(",", "")
    before = text[: matches[-1].start()].rstrip()
    if digits.startswith("-") and before and (before[-1].isdigit() or before[-1] in ")]"):
        digits = digits[1:]
    return Decimal(digits.replace(" ", ""))


def _levels(options: Mapping[str, object]) -> list[int]:
    unknown = set(options) - {"levels"}
    levels = options.get("levels", LEVELS)
    if unknown or not isinstance(levels, list | tuple) or not levels or set(levels) - set(LEVELS):
        raise BadInput(
            f"math prompts take options {{levels: some of {list(LEVELS)}}}, got {dict(options)}"
        )
    return sorted(set(levels))


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
