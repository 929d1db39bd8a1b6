"""Words and short sentences in German, French and Spanish, on a ladder of six levels.

Knows the grammar that the sentences of `lexicon.yaml` need: gender, endings, the German
accusative. Knows no model and keeps no state: a prompt depends on the seed alone.

    list(questions(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]})))
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.hooks import PromptRequest
from posttrain.ladders import places
from posttrain.rows import Message, Prompt

LEXICON: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("lexicon.yaml").read_text())
LANGUAGES = tuple(LEXICON["languages"])
NOUNS, ADJECTIVES, VERBS = (tuple(LEXICON[kind]) for kind in ("nouns", "adjectives", "verbs"))
LEVELS = (1, 2, 3, 4, 5, 6)
"""1: dog and cat. 2: the dog and the cat. 3: the red house. 4: a red house and the dog.
5: the dog sees the cat. 6: the dog sees the red house."""

PAIRS = tuple(itertools.permutations(NOUNS, 2))
CHOICES: dict[int, tuple[Sequence[Any], ...]] = {
    1: (LANGUAGES, PAIRS),
    2: (LANGUAGES, PAIRS),
    3: (LANGUAGES, NOUNS, ADJECTIVES),
    4: (LANGUAGES, PAIRS, ADJECTIVES),
    5: (LANGUAGES, PAIRS, VERBS),
    6: (LANGUAGES, PAIRS, ADJECTIVES, VERBS),
}
"""Level to what is chosen for a prompt."""


def questions(request: PromptRequest) -> Iterable[Prompt]:
    """`request.num` different phrases, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    sizes = {level: num_questions(level) for level in LEVELS}
    for level, index in places(request, "multilingual", sizes):
        language, *rest = _listed(level)[index]
        yield _prompt(language, phrase(level, rest, "en"), phrase(level, rest, language), level)


def num_questions(level: int) -> int:
    """How many different prompts a level has."""
    return len(_listed(level))


def phrase(level: int, picked: Sequence[Any], language: str) -> str:
    """The phrase of a level in `en`, `de`, `fr` or `es`."""
    first, second = picked[0] if level != 3 else (picked[0], picked[0])
    joined = "and" if language == "en" else LEXICON["languages"][language]["and"]
    if level == 1:
        return f"{_noun(first, language)} {joined} {_noun(second, language)}"
    if level == 2:
        return f"{_group('the', first, language)} {joined} {_group('the', second, language)}"
    if level == 3:
        return _group("the", first, language, picked[1])
    if level == 4:
        described = _group("a", first, language, picked[1])
        return f"{described} {joined} {_group('the', second, language)}"
    verb = picked[-1] if language == "en" else LEXICON["verbs"][picked[-1]][language]
    adjective = picked[1] if level == 6 else None
    seen = _group("the_object", second, language, adjective)
    return f"{_group('the', first, language)} {verb} {seen}"


def translate(prompt: Prompt, language: str) -> str:
    """The phrase of one of this recipe's prompts in another language, or in English again."""
    level = prompt.level or 1
    return phrase(level, _by_english(level)[prompt.prompt[-1].content.split(": ", 1)[1]], language)


@functools.cache
def _listed(level: int) -> list[tuple[Any, ...]]:
    return list(itertools.product(*CHOICES[level]))


@functools.cache
def _by_english(level: int) -> dict[str, list[Any]]:
    return {phrase(level, picked, "en"): picked for _, *picked in _listed(level)}


def _noun(noun: str, language: str) -> str:
    return noun if language == "en" else str(LEXICON["nouns"][noun][language][1])


def _group(article: str, noun: str, language: str, adjective: str | None = None) -> str:
    """Article, noun and perhaps an adjective."""
    if language == "en":
        return " ".join(filter(None, (article.removesuffix("_object"), adjective, noun)))
    gender, word = LEXICON["nouns"][noun][language]
    word_before = LEXICON["languages"][language][article][gender]
    if adjective is None:
        return f"{word_before} {word}"
    forms = LEXICON["adjectives"][adjective][language]
    if language != "de":
        return f"{word_before} {word} {forms[gender == 'f']}"
    ending = "e"
    if article == "the_object" and gender == "m":
        ending = "en"
    elif article == "a" and gender != "f":
        ending = {"m": "er", "n": "es"}[gender]
    return f"{word_before} {forms}{ending} {word}"


def _prompt(language: str, english: str, answer: str, level: int) -> Prompt:
    return Prompt(
        prompt=(Message(role="user", content=f"{language}: {english}"),),
        capability="multilingual",
        source="multilingual/prompts",
        level=level,
        reference={"answer": answer},
    )
