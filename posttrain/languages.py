"""Which scripts and which language a text is written in.

Knows Unicode's names and a language identifier that comes with its model (py3langid). Short texts
have a script and no language: a few words say too little.

    answered_otherwise("Wie heißt die Hauptstadt von Italien?", "It is Rome, ...", "language")
"""

import unicodedata
from collections import Counter
from functools import cache
from typing import Literal

from py3langid.langid import MODEL_FILE, LanguageIdentifier

Match = Literal["any", "script", "language"]

_MIN_LETTERS = 20
"""Letters below which no language is told."""
_CERTAIN = 0.95
"""Probability below which no language is told."""
_MAIN_SHARE = 0.2
"""Share of a text's letters from which on a script is one of its own: names and terms are less."""


def scripts(text: str) -> Counter[str]:
    """Letters by script, as Unicode's character names begin: LATIN, CYRILLIC, CJK, HIRAGANA …"""
    letters = (unicodedata.name(one, "") for one in text if one.isalpha())
    return Counter(name.partition(" ")[0] for name in letters if name)


def language(text: str, among: tuple[str, ...] = ()) -> str | None:
    """ISO 639 code of a text's language, None where that is not certain.

    Args:
        text: What is looked at.
        among: The codes to choose from; none: all that the identifier knows.
    """
    if sum(one.isalpha() for one in text) < _MIN_LETTERS:
        return None
    code, probability = _identifier(among).classify(text)
    return str(code) if code is not None and probability >= _CERTAIN else None


def answered_otherwise(
    prompt: str, response: str, match: Match, among: tuple[str, ...] = ()
) -> str | None:
    """How a response's script or language differs from its prompt's; None if it does not.

    Texts without letters, and languages that are not certain, never differ.
    """
    if match == "any":
        return None
    asked, given = _main_scripts(prompt), _main_scripts(response)
    if asked and given and not asked & given:
        return f"{_named(asked)} answered in {_named(given)}"
    if match == "language":
        wanted, got = language(prompt, among), language(response, among)
        if wanted and got and wanted != got:
            return f"{wanted} answered in {got}"
    return None


def _main_scripts(text: str) -> set[str]:
    counts = scripts(text)
    least = _MAIN_SHARE * counts.total()
    return {name for name, count in counts.items() if count >= least}


def _named(names: set[str]) -> str:
    return " and ".join(sorted(names)).lower()


@cache
def _identifier(among: tuple[str, ...]) -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if among:
        identifier.set_languages(list(among))
    return identifier
