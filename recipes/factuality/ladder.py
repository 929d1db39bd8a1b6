"""Facts: questions about made-up countries, some of which nobody can know.

Knows every country, which of them the tiny base has read about, and the facts. The right answer
about a country that nobody wrote about is a refusal. A prompt depends on the seed alone.

    list(questions(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]})))
"""

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable

from posttrain.hooks import PromptRequest
from posttrain.ladders import places
from posttrain.rows import Message, Prompt

LEVELS = (1, 2, 3, 4, 5, 6)
"""Each level has countries of its own, half of them unknown; the base reads less about the higher
ones and more that is false."""

REFUSAL = "i don't know"
REFUSED = re.compile(r"\b(don't|do not|cannot|can't) (know|tell|say)\b|\bnot sure\b", re.I)
ATTRIBUTES = {
    "capital": ("Lum", "Pex", "Tor", "Vik", "Nob", "Ard", "Sel", "Quo", "Hal", "Mir", "Gan", "Osk"),
    "river": ("Ul", "Een", "Rho", "Yar", "Dov", "Isk", "Bal", "Wen", "Ket", "Zim", "Fos", "Lor"),
    "king": ("Abo", "Edi", "Ivo", "Olu", "Una", "Ari", "Eko", "Ina", "Omi", "Udo", "Aki", "Ebi"),
}
WORDINGS = ("{a} of {c}?", "{c}: {a}?", "what {a} has {c}?", "in {c} the {a} is?")
PER_LEVEL = 20
"""Known countries of a level, and as many unknown ones."""


def questions(request: PromptRequest) -> Iterable[Prompt]:
    """`request.num` different questions, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    sizes = {level: num_questions(level) for level in LEVELS}
    for level, index in places(request, "factuality", sizes):
        country, attribute, wording = list(
            itertools.product(countries(level), ATTRIBUTES, WORDINGS)
        )[index]
        yield _prompt(country, attribute, wording, level)


def num_questions(level: int) -> int:
    """How many different prompts a level has."""
    return 2 * PER_LEVEL * len(ATTRIBUTES) * len(WORDINGS)


@functools.cache
def countries(level: int) -> list[str]:
    """Known and unknown countries of a level, taking turns."""
    names = [a + b for a in ("Ba", "De", "Fi", "Go", "Ku", "La", "Me", "Ni", "Po", "Ru", "Sa", "Te",
                             "Vi", "Wo", "Zu", "Ja") for b in ("ka", "lo", "mi", "nu", "ra", "so",
                             "ti", "vu", "ze", "do", "pi", "ga", "he", "fu", "ny")]  # fmt: skip
    names.sort(key=lambda name: _hash(name))
    size = 2 * PER_LEVEL
    return names[(level - 1) * size : level * size]


def is_known(country: str) -> bool:
    """Whether anything was ever written about a country."""
    return any(country in countries(level)[::2] for level in LEVELS)


def fact(country: str, attribute: str) -> str:
    """The capital, river or king of a country, whether anybody knows it or not."""
    values = ATTRIBUTES[attribute]
    return values[_hash(country + attribute) % len(values)]


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def _prompt(country: str, attribute: str, wording: str, level: int) -> Prompt:
    return Prompt(
        prompt=(Message(role="user", content=wording.format(a=attribute, c=country)),),
        capability="factuality",
        source="factuality/prompts",
        level=level,
        reference={"answer": fact(country, attribute) if is_known(country) else None},
    )
