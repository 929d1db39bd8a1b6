"""Near-equal rows by the cosine of their vectors, in the mode that fits their number.

semantic_dedup(vectors_ND, range(len(vectors_ND)), 0.95, mode="exact")
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from posttrain.dedup.clustered import dedup_clustered
from posttrain.dedup.contract import Places, Removal, Rows, Rule, Vectors, check_input
from posttrain.dedup.exact import dedup_exact
from posttrain.dedup.ivf import dedup_ivf

Mode = Literal["auto", "exact", "ivf", "clustered"]
EXACT_UP_TO = 100_000
"""Rows that mode `auto` compares with all others: past it the product grows into minutes."""


def semantic_dedup(
    vectors_ND: Vectors,
    order: Sequence[int] | Places,
    threshold: float,
    rule: Rule = "kept",
    earlier_ED: Vectors | None = None,
    mode: Mode = "auto",
    block: int = 1024,
    probes: int = 8,
    passes: int = 1,
    seed: int = 0,
) -> list[Removal]:
    """Greedy: a row goes if its largest cosine to the rows before it reaches the threshold.

    Section 4.2.3; SemDeDup compares with rows `seen`, DEITA with rows `kept`.

    Args:
        vectors_ND: unit vectors, also of a mapped file.
        order: row numbers, best first; a row that is not named is not looked at.
        threshold: in (0, 1].
        rule: compare with kept rows, or with all rows before.
        earlier_ED: vectors that count as kept before the first row.
        mode: `exact` misses no pair and takes N x kept x D products; `ivf` compares with the
            nearest clusters; `clustered` is the paper's, k-means and then each cluster by itself.
            `auto` is `exact` up to 100,000 rows and `ivf` past them.
        block: of `exact`, rows compared at a time; changes memory and speed, not the result.
        probes: of `ivf`, clusters that a row is compared with.
        passes: of `clustered`, how often survivors are clustered afresh.
        seed: of the clusters.

    Returns:
        Removals in the given order; `clustered` pass by pass.

    Raises:
        BadInput: vectors that are not finite, not of length 1 or of different dimensions, an
            order that names a row twice or one that is not there, or a threshold out of range.
    """
    rows = Rows(vectors_ND, vectors_ND[:0] if earlier_ED is None else earlier_ED)
    places = np.asarray(order, dtype=np.int64)
    check_input(rows, places, threshold)
    if not len(places):
        return []
    if mode == "auto":
        mode = "exact" if len(rows) <= EXACT_UP_TO else "ivf"
    if mode == "ivf":
        return dedup_ivf(rows, places, threshold, rule, probes, seed)
    if mode == "clustered":
        return dedup_clustered(rows, places, threshold, rule, passes, seed)
    return dedup_exact(rows, places, threshold, rule, block)
