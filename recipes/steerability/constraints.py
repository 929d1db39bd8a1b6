"""Constraints on an answer that a program can check, in the words of a system prompt.

Knows each kind by its wording: `at most 60 words`, `as 3 bullet points`, `in German`.

    keeps("Ein kurzer Satz.", "exactly 1 sentences")
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from posttrain.errors import BadInput
from posttrain.languages import language

LANGUAGES = {
    "English": "en",
    "German": "de",
    "French": "fr",
    "Italian": "it",
    "Portuguese": "pt",
    "Hindi": "hi",
    "Spanish": "es",
    "Thai": "th",
}
COMPARED = {
    "at most": lambda found, wanted: found <= wanted,
    "at least": lambda found, wanted: found >= wanted,
    "exactly": lambda found, wanted: found == wanted,
}
COUNTED: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(re.findall(r"\w+", text)),
    "sentences": lambda text: len(re.findall(r"[.!?。]+(?=\s|$)", text)),
    "paragraphs": lambda text: len([p for p in re.split(r"\n\s*\n", text) if p.strip()]),
    "characters": len,
}
FORBIDDEN = {
    "digits": r"\d",
    "commas": r"[,，、]",
    "exclamation marks": r"[!！]",
    "question marks": r"[?？]",
}


class Asked(NamedTuple):
    """An answer, a constraint's own parts, and the words that the user asked for, if any."""

    text: str
    parts: tuple[str, ...]
    words: Sequence[str]


def keeps(text: str, constraint: str, words: Sequence[str] = ()) -> bool:
    """Whether an answer keeps a constraint.

    Args:
        text: The answer.
        constraint: In words.
        words: What the user asked for, where the constraint is about it (`reverse order`).

    Raises:
        BadInput: nothing here checks this constraint.
    """
    for pattern, check in CHECKS:
        match = re.fullmatch(pattern, constraint.strip())
        if match:
            return check(Asked(text.strip(), match.groups(), words))
    raise BadInput(f"steerability: no program checks the constraint {constraint!r}")


def _counted(one: Asked) -> bool:
    how, number, unit = one.parts
    return bool(COMPARED[how](COUNTED[unit](one.text), int(number)))


def _listed(one: Asked) -> bool:
    number, kind = one.parts
    mark = r"[-*•]" if kind == "bullet" else r"\d+[.)]"
    return len(re.findall(rf"^\s*{mark}\s+\S", one.text, re.M)) == int(number)


def _json(one: Asked) -> bool:
    text = re.sub(r"\A```(?:json)?\n|\n```\Z", "", one.text)
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _quoted(one: Asked) -> bool:
    text = one.text
    return len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]


def _ends(one: Asked) -> bool:
    """Ends with a phrase, or with a word whatever stands after it."""
    quoted, plain = one.parts
    if quoted is not None:
        return one.text.endswith(quoted)
    return _words(one.text)[-1:] == [plain.lower()]


def _has_word(one: Asked) -> bool:
    no, word = one.parts
    return bool(re.search(rf"\b{re.escape(word)}\b", one.text, re.I)) != bool(no)


def _reversed(one: Asked) -> bool:
    order = [one.words.index(word) for word in _words(one.text) if word in one.words]
    return order == sorted(order, reverse=True)


def _in_language(one: Asked) -> bool:
    # Of a few words no language is told: they are given the benefit of the doubt.
    return language(one.text, tuple(LANGUAGES.values())) in (LANGUAGES[one.parts[0]], None)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


CHECKS: tuple[tuple[str, Callable[[Asked], bool]], ...] = (
    (rf"({'|'.join(COMPARED)}) (\d+) ({'|'.join(COUNTED)})", _counted),
    (r"as (\d+) (bullet|numbered) points", _listed),
    (r"in JSON", _json),
    (r"under a Markdown heading", lambda one: bool(re.match(r"#{1,6} \S", one.text))),
    (r"(?:in )?upper case", lambda one: one.text == one.text.upper() != one.text.lower()),
    (r"(?:in )?lower case", lambda one: one.text == one.text.lower() != one.text.upper()),
    (r"in quotes", _quoted),
    (r"with commas", lambda one: one.text.count(",") == len(_words(one.text)) - 1),
    (
        rf"no ({'|'.join(FORBIDDEN)})",
        lambda one: not re.search(FORBIDDEN[one.parts[0]], one.text),
    ),
    (r"end with a question mark", lambda one: one.text.endswith(("?", "？"))),
    (r'end with (?:"([^"]+)"|(\w+))', _ends),
    (r'begin with "([^"]+)"', lambda one: one.text.startswith(one.parts[0])),
    (r'(no |the )?word "([^"]+)"', lambda one: _has_word(_without_the(one))),
    (r"reverse order", _reversed),
    (rf"in ({'|'.join(LANGUAGES)})", _in_language),
)
"""Wording, as a regular expression whose groups are the constraint's parts, and its check."""


def _without_the(one: Asked) -> Asked:
    return one._replace(parts=("no" if one.parts[0] == "no " else "", one.parts[1]))
