"""How alike the responses of a ranking are: by the edits between their tokens, by their embeddings.

Knows two measures in [0, 1], both 1 for equal responses; knows no tokenizer, no embedder and no
limits. A pair that is nearly alike says little about which response is better (section 4.1.2).

    alike_by_edits(row, limit=0.95, encode=lambda text: tokenizer(text)["input_ids"])
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

from posttrain.embedding import Embedded, dialog_text
from posttrain.rows import Preference

Encode = Callable[[str], Sequence[int]]
"""A text's tokens."""
Embed = Callable[[Sequence[str]], Embedded]
"""Unit vectors of texts."""


class Alike(NamedTuple):
    """The two neighbours of a ranking that are most alike."""

    measure: Literal["edit", "cosine"]
    value: float
    ranks: tuple[int, int]
    """Their places in the ranking, 1 the best."""


class Cosines(NamedTuple):
    """What embeddings say of N rankings."""

    alike: list[Alike | None]
    num_unread: int
    """Rankings with a response of which the embedder reads the beginning only: not judged, since
    what differs may come later."""


def edit_similarity(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """1 minus Levenshtein's distance as a share of the longer sequence; 1 for two empty ones."""
    return float(Levenshtein.normalized_similarity(a, b))


def alike_by_edits(row: Preference, limit: float, encode: Encode) -> Alike | None:
    """The most similar neighbours of a ranking, where their edit similarity is above the limit."""
    tokens = [encode(dialog_text(response)) for response in row.ranking()]
    found = []
    for rank, (better, worse) in enumerate(pairwise(tokens), 1):
        value = edit_similarity(better, worse)
        if value > limit:
            found.append(Alike("edit", value, (rank, rank + 1)))
    return max(found, key=lambda one: one.value, default=None)


def alike_by_cosine(rows: Sequence[Preference], limit: float, embed: Embed) -> Cosines:
    """For each ranking its most similar neighbours, where their cosine is above the limit."""
    texts = [dialog_text(response) for row in rows for response in row.ranking()]
    vectors_ND, truncated_N = embed(texts)
    alike: list[Alike | None] = []
    start = num_unread = 0
    for row in rows:
        places = range(start, start + len(row.ranking()))
        start = places.stop
        if truncated_N[places.start : places.stop].any():
            num_unread += 1
            alike.append(None)
            continue
        pairs = (
            Alike("cosine", float(vectors_ND[i] @ vectors_ND[j]), (rank, rank + 1))
            for rank, (i, j) in enumerate(pairwise(places), 1)
        )
        best = max(pairs, key=lambda one: one.value)
        alike.append(best if best.value > limit else None)
    return Cosines(alike, num_unread)
