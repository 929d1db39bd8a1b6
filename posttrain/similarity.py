"""How alike the responses of a ranking are: by the edits between their tokens, by their embeddings.

Knows two measures in [0, 1], both 1 for equal responses; knows no tokenizer, no embedder and no
limits. A pair that is nearly alike says little about which response is better (section 4.1.2).

    measure = by_edits(row, limit=0.95, encode=lambda text: tokenizer(text)["input_ids"])
    kept, alike = without_alike(row, [measure])
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from posttrain.embedding import Embedded, dialog_text
from posttrain.rows import Messages, Preference

Encode = Callable[[str], Sequence[int]]
"""A text's tokens."""
Embed = Callable[[Sequence[str]], Embedded]
"""Unit vectors of texts."""


class Alike(NamedTuple):
    """Two responses of a ranking that are more alike than allowed."""

    measure: Literal["edit", "cosine"]
    value: float
    ranks: tuple[int, int]
    """Their places in the ranking, 1 the best."""


Measure = Callable[[int, int], Alike | None]
"""Two places of a ranking, from 0 for the best, and what is to be said if they are alike."""


class Distinct(NamedTuple):
    """What is left of a ranking without responses that are nearly alike."""

    row: Preference | None
    """None where nothing is left to compare."""
    alike: list[Alike]
    """Why each of the others went."""


class Cosines(NamedTuple):
    """What embeddings say of N rankings."""

    measures: list[Measure | None]
    """None for a ranking with a response of which the embedder reads the beginning only: it is not
    judged, since what differs may come later."""

    @property
    def num_unread(self) -> int:
        return self.measures.count(None)


def edit_similarity(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """1 minus Levenshtein's distance as a share of the longer sequence; 1 for two empty ones."""
    return float(Levenshtein.normalized_similarity(a, b))


def by_edits(row: Preference, limit: float, encode: Encode) -> Measure:
    """Responses of a ranking whose edit similarity is above the limit."""
    tokens = [encode(dialog_text(response)) for response in row.ranking()]

    def measure(better: int, worse: int) -> Alike | None:
        value = edit_similarity(tokens[better], tokens[worse])
        return Alike("edit", value, (better + 1, worse + 1)) if value > limit else None

    return measure


def by_cosine(rows: Sequence[Preference], limit: float, embed: Embed) -> Cosines:
    """For each ranking: responses whose embeddings have a cosine above the limit."""
    texts = [dialog_text(response) for row in rows for response in row.ranking()]
    vectors_ND, truncated_N = embed(texts)

    def measure_of(vectors_KD: np.ndarray) -> Measure:
        def measure(better: int, worse: int) -> Alike | None:
            value = float(vectors_KD[better] @ vectors_KD[worse])
            return Alike("cosine", value, (better + 1, worse + 1)) if value > limit else None

        return measure

    measures: list[Measure | None] = []
    start = 0
    for row in rows:
        stop = start + len(row.ranking())
        unread = truncated_N[start:stop].any()
        measures.append(None if unread else measure_of(vectors_ND[start:stop]))
        start = stop
    return Cosines(measures)


def without_alike(row: Preference, measures: Sequence[Measure]) -> Distinct:
    """The ranking without each response that is nearly alike to the next better one that stays.

    An edit takes the place of the chosen response it is nearly alike to: it is still better than
    the rejected one. Without the rejected response there is no preference.
    """
    ranking = row.ranking()
    kept, alike = [0], []
    for place in range(1, len(ranking)):
        found = next(filter(None, (measure(kept[-1], place) for measure in measures)), None)
        if found is None:
            kept.append(place)
        else:
            alike.append(found)
    if not alike:
        return Distinct(row, alike)
    if len(kept) < 2 or (row.ranked is None and kept[-1] != len(ranking) - 1):
        return Distinct(None, alike)
    left = tuple(ranking[place] for place in kept)
    changes: dict[str, Messages | tuple[Messages, ...] | None] = (
        {"ranked": left} if row.ranked is not None else {"chosen": left[0], "edited": None}
    )
    return Distinct(row.model_copy(update=changes), alike)
