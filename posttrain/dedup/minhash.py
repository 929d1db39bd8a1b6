"""Texts that share most of their wording, by MinHash; every match is verified on the texts.

Words in runs of `ngram` are a text's shingles. Sketches are banded, and texts that share a band are
compared shingle by shingle. Suffixes: N texts, B bands, S shingles of a text.

    keys_NB = band_keys(texts, ngram=5)
    near_copies(keys_NB, order, lambda row: shingles(texts[row], 5), threshold=0.8)
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from rensa import RMinHash

from posttrain.dedup.contract import Places, Removal
from posttrain.dedup.words import BLANKS, Hashes, run_hashes, word_hashes

BANDS = 32
ROWS_A_BAND = 4
"""Texts with a Jaccard similarity of .8 share none of 32 bands of 4 once in 10 million times, of .5
once in 8 times."""
SEED = 1
_MIX = np.uint64(0x9E3779B97F4A7C15)


def band_keys(texts: Sequence[str], ngram: int) -> Hashes:
    """One number a band for each text, shape (N, 32); equal ones mean an equal part of the sketch.

    Args:
        texts: a batch.
        ngram: words of a shingle; a shorter text is one shingle.
    """
    flat, starts = _shingles(texts, ngram)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        flat, starts.tolist(), BANDS * ROWS_A_BAND, SEED
    )
    digests = np.array(matrix.to_rows(), dtype=np.uint64)
    keys_NB = np.zeros((len(texts), BANDS), np.uint64)
    for place in range(ROWS_A_BAND):
        keys_NB = (keys_NB ^ digests[:, place::ROWS_A_BAND]) * _MIX
        keys_NB ^= keys_NB >> np.uint64(29)
    return keys_NB


def shingles(text: str, ngram: int) -> Hashes:
    """Hashes of the different shingles of a text, sorted."""
    return np.unique(_shingles([text], ngram)[0])


def jaccard(one_S: Hashes, other_S: Hashes) -> float:
    """Share of two texts' shingles that both have; 1 where neither has any."""
    both = len(np.intersect1d(one_S, other_S, assume_unique=True))
    either = len(one_S) + len(other_S) - both
    return both / either if either else 1.0


def near_copies(
    keys_NB: Hashes,
    order: Sequence[int] | Places,
    shingles_of: Callable[[int], Hashes],
    threshold: float,
) -> list[Removal]:
    """Greedy: a row goes if it shares enough of its shingles with a row that was kept before it.

    Args:
        keys_NB: what `band_keys` gave for all rows.
        order: the rows to go through, best first; not all need be there.
        shingles_of: the shingles of a row; asked for rows that share a band with another alone.
        threshold: Jaccard similarity in (0, 1].

    Returns:
        Removals in the given order, each with the kept row it is most similar to.
    """
    places = np.asarray(order, dtype=np.int64)
    shared = np.zeros((len(places), keys_NB.shape[1]), np.bool_)
    for band in range(keys_NB.shape[1]):
        _, inverse, counts = np.unique(
            keys_NB[places, band], return_inverse=True, return_counts=True
        )
        shared[:, band] = counts[inverse] > 1
    kept: dict[tuple[int, int], list[int]] = defaultdict(list)
    removals: list[Removal] = []
    for place in np.flatnonzero(shared.any(axis=1)).tolist():
        row = int(places[place])
        bands = np.flatnonzero(shared[place]).tolist()
        buckets = [kept[band, int(keys_NB[row, band])] for band in bands]
        likely = dict.fromkeys(other for bucket in buckets for other in bucket)
        if likely:
            own_S = shingles_of(row)
            best, keeper = max((jaccard(own_S, shingles_of(other)), -other) for other in likely)
            if best >= threshold:
                removals.append(Removal(row, -keeper, best))
                continue
        for bucket in buckets:
            bucket.append(row)
    return removals


def _shingles(texts: Sequence[str], ngram: int) -> tuple[Hashes, Places]:
    plain = [
        text.lower() if text.isascii() else " ".join(text.casefold().split()) for text in texts
    ]
    hashes, starts = run_hashes(plain, BLANKS, ngram)
    short = np.flatnonzero(np.diff(starts) == 0)
    if not len(short):
        return hashes, starts
    # A shorter text is filled up, and so is one shingle.
    _, counts = word_hashes([plain[place] for place in short], BLANKS)
    for place, count in zip(short.tolist(), counts.tolist(), strict=True):
        plain[place] += " \0" * (ngram - count)
    return run_hashes(plain, BLANKS, ngram)
