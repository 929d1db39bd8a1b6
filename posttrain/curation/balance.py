"""Balancing: phrases that too many answers hold are brought down to a share of the rows (4.2.3).

Families of phrases are named by the pipeline; openings that models use far more often than people
do are found by comparing the two. Knows phrases and which rows are the worst.

    balance(rows, Balance(families={"apology": ("i'm sorry", "i apologize")}))
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import regex

from posttrain.curation.contract import Dropped, Row, StepResult, drop
from posttrain.settings.pipeline import Balance

STEP = "balance"
PROSE = regex.compile(r"\p{L}[\p{L}'\u2019-]*")


class _Overused(NamedTuple):
    """Rows that share a phrase, and how many of the others' number they may be."""

    name: str
    target: float
    holds: Callable[[Row], bool]
    among: Callable[[Row], bool]


def phrases_of(answers: Sequence[str], families: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names of the families of which an answer holds a phrase; case does not matter."""
    text = "\n".join(answers).casefold().replace("\u2019", "'")
    return tuple(name for name, own in sorted(families.items()) if any(p in text for p in own))


def opening_of(answer: str, words: int) -> str:
    """The first words of an answer, in lower case and without marks; empty where it is no prose."""
    found: list[str] = []
    for word in answer.split(maxsplit=words)[:words]:
        bare = word.strip(".,:;!?")
        if not PROSE.fullmatch(bare):
            break
        found.append(bare.casefold())
    return " ".join(found)


def balance(rows: Sequence[Row], settings: Balance) -> StepResult:
    """Drop the worst rows of each overused phrase until it has its share; people's rows stay."""
    kept = list(rows)
    dropped: list[Dropped] = []
    notes: dict[str, Any] = {}
    for one in (*_families(settings), *_openings(rows, settings)):
        population = sum(map(one.among, kept))
        holding = [row for row in kept if one.among(row) and one.holds(row)]
        surplus = math.ceil((len(holding) - one.target * population) / (1 - one.target) - 1e-9)
        ranked = sorted((row for row in holding if not row.human), key=Row.rank)
        gone = ranked[max(0, len(ranked) - max(0, surplus)) :]
        dropped += [drop(row, STEP, f"overused: {one.name}") for row in gone]
        numbers = {row.number for row in gone}
        kept = [row for row in kept if row.number not in numbers]
        if holding:
            share = len(holding) / population
            notes[one.name] = {"share": share, "target": one.target, "dropped": len(gone)}
    return StepResult([row.decide(STEP, "no phrase too many") for row in kept], dropped, {}, notes)


def _families(settings: Balance) -> list[_Overused]:
    return [
        _Overused(name, settings.max_share, lambda row, n=name: n in row.phrases, lambda row: True)  # type: ignore[misc]
        for name in sorted(settings.families)
    ]


def _openings(rows: Sequence[Row], settings: Balance) -> list[_Overused]:
    """Openings of a capability's answers that models use too much more often than people."""
    if not settings.find:
        return []
    by_who: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_who[row.capability, row.human][row.opening] += 1
    found = []
    for (capability, human), openings in sorted(by_who.items()):
        people = by_who[capability, True]
        if human or people.total() < settings.least_human:
            continue
        for opening, count in sorted(openings.items()):
            allowed = max(settings.max_share, settings.ratio * people[opening] / people.total())
            if opening and count / openings.total() > allowed and allowed < 1:
                found.append(
                    _Overused(
                        f"{capability} opens with {opening!r}",
                        allowed,
                        lambda row, o=opening: row.opening == o,  # type: ignore[misc]
                        lambda row, c=capability: row.capability == c,  # type: ignore[misc]
                    )
                )
    return found
