"""Runs of words as numbers: of a whole batch of texts at once, without an object a word.

Knows bytes and gaps between words; no similarity. Suffixes: Y bytes, W words, R runs, N texts.

    hashes_R, starts_N = run_hashes(["the old town lies"], GAPS, ngram=3)
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posttrain.dedup.contract import Places

Hashes = NDArray[np.uint64]

_BASE = np.uint64(0x9E3779B97F4A7C55)
"""Odd, so that its powers have inverses modulo 2^64."""
_MIX = np.uint64(0x9E3779B97F4A7C15)
FEWEST_POWERS = 1 << 21
"""Bytes of a batch of common size."""
BLANKS = np.array([chr(byte).isspace() for byte in range(128)] + [False] * 128)
"""Bytes between words where a word is what stands between blanks."""
MARKS = np.array([not (chr(byte).isalnum() or byte == 95) for byte in range(128)] + [False] * 128)
"""Bytes between words where a word is a run of letters, digits and underscores."""


def run_hashes(texts: Sequence[str], gaps: NDArray[np.bool_], ngram: int) -> tuple[Hashes, Places]:
    """Hashes of all texts' runs of `ngram` words in their order, with repeats.

    Args:
        texts: a batch; beyond ASCII, words must be parted by ASCII gaps already.
        gaps: for each byte whether it parts words, such as `BLANKS`.
        ngram: words of a run; a text with fewer has none.

    Returns:
        The hashes of all texts, and where each text's begin; one more place stands at the end.
    """
    hashes_W, counts_N = word_hashes(texts, gaps)
    mixed = np.zeros(max(0, len(hashes_W) - ngram + 1), np.uint64)
    for place in range(ngram):
        mixed = (mixed ^ hashes_W[place : place + len(mixed)]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    # The last words of a text begin no run of it.
    ends = np.cumsum(counts_N)
    inside = np.ones(len(mixed), np.bool_)
    for place in range(1, ngram):
        last = ends - place
        inside[last[(last >= ends - counts_N) & (last < len(mixed))]] = False
    starts = np.concatenate([[0], np.cumsum(np.maximum(counts_N - ngram + 1, 0))])
    return mixed[inside], starts


def word_hashes(texts: Sequence[str], gaps: NDArray[np.bool_]) -> tuple[Hashes, Places]:
    """The hash of every word, and the number of words of each text; see `run_hashes`."""
    raws = [text.encode() for text in texts]
    # A byte of a gap before the first text and behind each.
    data_Y = np.frombuffer(b"".join([b"\n", *[raw + b"\n" for raw in raws]]), np.uint8)
    edges = np.flatnonzero(np.diff(gaps[data_Y]))
    starts_W, ends_W = edges[0::2] + 1, edges[1::2] + 1
    powers_Y, inverses_Y = _powers(max(FEWEST_POWERS, 1 << (len(data_Y) - 1).bit_length()))
    sums_Y = np.cumsum(data_Y * powers_Y[: len(data_Y)])
    hashes_W = (sums_Y[ends_W - 1] - sums_Y[starts_W - 1]) * inverses_Y[starts_W]
    text_ends = np.cumsum([len(raw) + 1 for raw in raws], dtype=np.int64)
    counts_N = np.diff(np.searchsorted(starts_W, text_ends, side="right"), prepend=0)
    return hashes_W ^ (hashes_W >> np.uint64(32)), counts_N


@functools.lru_cache(maxsize=1)
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """Powers of the base and their inverses, modulo 2^64."""
    found = []
    for base in (_BASE, np.uint64(pow(int(_BASE), -1, 1 << 64))):
        powers = np.full(size, base, np.uint64)
        powers[0] = 1
        found.append(np.multiply.accumulate(powers))
    return found[0], found[1]
