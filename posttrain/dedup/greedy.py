"""The greedy decision of every mode: a row goes if its largest cosine to rows before it is high.

Knows hits; not how they were found.

    decide(names, outside, inside, rows, 0.95, "kept")
"""

import numpy as np
from numpy.typing import NDArray

from posttrain.dedup.contract import Hits, Places, Removal, Rows, Rule
from posttrain.dedup.products import ROUNDING_BAND

EQUAL_WITHIN = 1e-7
"""Cosines are compared to within the precision of float32 vectors: equal ones reach 1."""


def decide(
    names: Places, outside: Hits, inside: Hits, rows: Rows, threshold: float, rule: Rule
) -> tuple[list[Removal], NDArray[np.bool_]]:
    """Go through a block in order, best first.

    Pairs this close to a decision are computed again in float64, so neither blocks, threads nor the
    dtype of a product can change the result.

    Args:
        names: the block's rows.
        outside: hits with rows before the block; `other_H` holds their names.
        inside: hits within the block; `other_H` holds places, of which later ones do not matter.
        rows: all vectors.
        threshold: in (0, 1].
        rule: what a removed row of the block still counts for.

    Returns:
        The removals, and for each of the block's rows whether later rows are compared with it.
    """
    removals: list[Removal] = []
    counts_B = np.ones(len(names), np.bool_)
    # Every row is near to itself.
    before = inside.other_H < inside.row_H
    inside = Hits(inside.row_H[before], inside.other_H[before], inside.cosine_H[before])
    for place in np.union1d(outside.row_H, inside.row_H).tolist():
        others, cosines = _of_row(outside, place)
        own_others, own_cosines = _of_row(inside, place)
        usable = counts_B[own_others]
        others = np.concatenate([others, names[own_others[usable]]])
        cosines = np.concatenate([cosines, own_cosines[usable]])
        if not len(others):
            continue
        likely = others[cosines >= cosines.max() - ROUNDING_BAND]
        keeper, cosine = _best(names[place], likely, rows)
        if cosine >= threshold - EQUAL_WITHIN:
            removals.append(Removal(int(names[place]), keeper, min(1.0, cosine)))
            counts_B[place] = rule == "seen"
    return removals, counts_B


def _of_row(hits: Hits, place: int) -> tuple[Places, NDArray[np.float32]]:
    start, end = np.searchsorted(hits.row_H, [place, place + 1])
    return hits.other_H[start:end], hits.cosine_H[start:end]


def _best(name: int, candidates: Places, rows: Rows) -> tuple[int, float]:
    """The candidate with the largest cosine in float64, the first of equal ones."""
    near_CD = rows.take(candidates).astype(np.float64)
    row_D = rows.take(np.array([name]))[0].astype(np.float64)
    lengths_C = np.sqrt(np.einsum("cd,cd->c", near_CD, near_CD) * np.dot(row_D, row_D))
    cosines_C = np.round(np.einsum("cd,d->c", near_CD, row_D) / lengths_C, 9)
    best = int(np.argmax(cosines_C))
    return int(candidates[best]), float(cosines_C[best])
