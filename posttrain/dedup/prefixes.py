"""Beginnings that many texts share: instructions or examples that would drown what differs.

An embedder reads the first few hundred tokens: two texts with the same long beginning look alike to
it, whatever they ask. Knows lines of texts; no vectors.

    shared = SharedPrefixes()
    for text in texts:
        shared.add(text)
    shared.without(texts[0])
"""

import hashlib
from collections import Counter
from collections.abc import Iterator

LEAST_CHARACTERS = 200
LEAST_TEXTS = 20
"""Fewer than this many may be near duplicates, whose wording is what makes them alike."""
MOST_LINES = 64
"""Line ends that are looked at."""


class SharedPrefixes:
    """Counts where texts begin alike, up to the ends of lines."""

    def __init__(self) -> None:
        """No text is known yet."""
        self._counts: Counter[bytes] = Counter()

    def add(self, text: str) -> None:
        """Count a text's beginnings."""
        self._counts.update(key for key, _ in _beginnings(text))

    def without(self, text: str) -> str:
        """The text less the longest beginning that enough of the texts share.

        A text that is nothing but such a beginning stays as it is.
        """
        end = 0
        for key, place in _beginnings(text):
            if self._counts[key] < LEAST_TEXTS:
                break
            end = place
        return text[end:].lstrip("\n") if text[end:].strip() else text


def _beginnings(text: str) -> Iterator[tuple[bytes, int]]:
    """A hash of the text up to each of its first line ends, and where that is."""
    whole, start, place = hashlib.blake2b(digest_size=8), 0, text.find("\n")
    for _ in range(MOST_LINES):
        if place < 0:
            return
        whole.update(text[start:place].encode())
        if place >= LEAST_CHARACTERS:
            yield whole.copy().digest(), place
        start, place = place, text.find("\n", place + 1)
