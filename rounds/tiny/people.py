"""The simulated people of the tiny world: no person judged anything here, these functions did.

Knows their taste: what they see at a glance weighs most (broken JSON, the wrong language, an order
ignored, an invented fact), bad manners less (an opening such as "sure!", a parting such as
"enjoy!"), and a mistake that only a check would find least, though never less than nothing. They
stand where annotators and a judge stand in a real run, so that six rounds can be tried without
waiting for anyone; what a run shows with them says nothing about what people prefer.

    utility(prompt, "46", passed=True) > utility(prompt, "sure! 46", passed=True)
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from posttrain.rows import Prompt

FILLER = re.compile(
    r"(?:(?:sure|certainly|of course|absolutely|great question)\b[!,.:]*\s*)+", re.I
)
POLITE = re.compile(
    r"\s*\n(?:enjoy|thanks|you're welcome|hope (?:it|this) helps)\b[!,.]*\s*$", re.I
)
REFUSED = re.compile(r"\b(?:don't|do not|cannot|can't) (?:know|tell|say)\b|\bnot sure\b", re.I)

MANNERS, BOTH, CHARACTER = 2.0, 0.3, 0.004
"""What an opening or a parting costs, what both cost beyond that, and what each character costs."""

HIDDEN, VISIBLE, GLARING = 1.7, 4.0, 6.0
"""What a mistake costs by how easily a person sees it. One that is hidden costs less than a filler,
so that a right answer with bad manners may lose, but only just."""


def utility(prompt: Prompt, response: str, passed: bool) -> float:
    """How much a simulated person likes a response; only differences mean anything."""
    habits = bool(FILLER.match(response)) + bool(POLITE.search(response))
    manners = (0.0, MANNERS, MANNERS + BOTH)[habits]
    mistake = 0.0 if passed else severity(prompt, response)
    return -manners - mistake - CHARACTER * min(len(response), 200)


def severity(prompt: Prompt, response: str) -> float:
    """How bad a wrong response looks to somebody who does not check it."""
    plain, reference = _plain(response), prompt.reference
    if prompt.capability == "math":
        return HIDDEN if re.search(r"\d", plain) else GLARING
    if prompt.capability == "code":
        return HIDDEN if plain.startswith("lambda ") and _brackets_close(plain) else VISIBLE
    if prompt.capability == "tool_use":
        return _tool_severity(plain, reference.get("calls", []))
    if prompt.capability == "multilingual":
        expected = set(re.findall(r"\w+", str(reference.get("answer", "")).casefold()))
        said = re.findall(r"\w+", plain.casefold())
        return HIDDEN if sum(word in expected for word in said) * 2 > len(said) else GLARING
    if prompt.capability == "factuality":
        if reference.get("answer") is None:
            return GLARING
        return VISIBLE if REFUSED.search(plain) else HIDDEN
    if prompt.capability == "steerability":
        return VISIBLE
    return HIDDEN if re.search(r"\w", plain) else GLARING


def edit(prompt: Prompt, response: str, passed: bool) -> str | None:
    """The response as a simulated person would rewrite it, or None to leave it as it is.

    Only the opening and the parting are cut and white space trimmed; a wrong answer is not put
    right.
    """
    edited = _plain(response)
    return edited if edited and edited != response else None


def grade(prompt: Prompt, response: str, passed: bool) -> int:
    """The simulated judge's grade: 3 right, 2 wrong in a way that hardly shows, 1 wrong.

    It has no taste, so that manners are learned from preferences alone.
    """
    if passed:
        return 3
    return 2 if severity(prompt, response) <= HIDDEN else 1


def judge(rubric: str, variables: Mapping[str, Any]) -> tuple[int, int] | None:
    """The simulated judge's points and their maximum on a rubric that recipes ask about.

    None of a rubric that this world has no use for.
    """
    said = _plain(str(variables.get("response", "")))
    if rubric == "informative":
        return int(not REFUSED.search(said)), 1
    if rubric == "factual":
        stated, known = re.findall(r"\w+", said), re.findall(r"\w+", str(variables["text"]))
        return int(stated[-1:] == known[-1:]), 1
    return None


def _plain(response: str) -> str:
    opened = FILLER.sub("", response, count=1) if FILLER.match(response) else response
    return POLITE.sub("", opened).strip()


def _tool_severity(plain: str, expected: list[dict[str, object]]) -> float:
    try:
        calls = [json.loads(line) for line in plain.splitlines()]
    except ValueError:
        return GLARING
    return VISIBLE if len(calls) != len(expected) or _names(calls) != _names(expected) else HIDDEN


def _names(value: object) -> list[str]:
    """Every key of nested JSON, in order."""
    if isinstance(value, dict):
        return [n for key, inner in value.items() for n in (str(key), *_names(inner))]
    return [n for inner in value for n in _names(inner)] if isinstance(value, list) else []


def _brackets_close(text: str) -> bool:
    return all(text.count(a) == text.count(b) for a, b in ("()", "[]")) and text.count("'") % 2 == 0
