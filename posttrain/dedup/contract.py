"""What goes into semantic deduplication and what comes out; the same for every mode.

Suffixes: N rows, E earlier rows, D dimensions, H hits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from posttrain.errors import BadInput

Vectors = NDArray[np.float32]
Places = NDArray[np.int64]
Rule = Literal["kept", "seen"]
"""Compare with rows that were kept (DEITA), or with every row before (SemDeDup); the paper cites
both."""

CHECKED_AT_ONCE = 65536
"""Rows whose length is checked at a time: a file of vectors that is mapped is never copied whole"""


class Removal(NamedTuple):
    """One removed row and the row that stands for it."""

    row: int
    keeper: int
    """The most similar row it was compared with; N + e for row e of the earlier ones. Under the
    rule `seen`, and in mode `clustered`, that row may have been removed itself."""
    similarity: float
    """Cosine; of `minhash`, Jaccard similarity."""


@dataclass(frozen=True)
class Rows:
    """Vectors by name: row n is n, row e of the earlier ones is N + e."""

    vectors_ND: Vectors
    earlier_ED: Vectors

    def __len__(self) -> int:
        return len(self.vectors_ND) + len(self.earlier_ED)

    def take(self, names: Places) -> Vectors:
        """The vectors of the named rows, in their order."""
        num = len(self.vectors_ND)
        if not len(self.earlier_ED) or names.max(initial=0) < num:
            return np.asarray(self.vectors_ND[names], dtype=np.float32)
        taken = np.empty((len(names), self.vectors_ND.shape[1]), np.float32)
        own = names < num
        taken[own] = self.vectors_ND[names[own]]
        taken[~own] = self.earlier_ED[names[~own] - num]
        return taken


class Hits(NamedTuple):
    """Pairs whose cosine may reach the threshold."""

    row_H: Places
    """Places within a block."""
    other_H: Places
    cosine_H: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence["Hits"]) -> Self:
        """All parts as one, sorted by row; hits of one row stay in the order of the parts."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        rows = np.concatenate([part.row_H for part in parts])
        order = np.argsort(rows, kind="stable")
        others = np.concatenate([part.other_H for part in parts])[order]
        return cls(rows[order], others, np.concatenate([part.cosine_H for part in parts])[order])


def check_vectors(name: str, matrix: Vectors) -> None:
    """Finite unit vectors.

    Raises:
        BadInput: no matrix, a number that is not finite, or a row that has not length 1.
    """
    if matrix.ndim != 2:
        raise BadInput(f"{name}: expected a matrix of rows, got shape {matrix.shape}")
    for start in range(0, len(matrix), CHECKED_AT_ONCE):
        lengths = np.linalg.norm(matrix[start : start + CHECKED_AT_ONCE], axis=1)
        if not np.isfinite(lengths).all():
            place = start + int(np.flatnonzero(~np.isfinite(lengths))[0])
            raise BadInput(f"{name}: row {place} is not finite; embed these rows again")
        wrong = np.flatnonzero(np.abs(lengths - 1) > 1e-3)
        if len(wrong):
            place, length = start + int(wrong[0]), lengths[wrong[0]]
            raise BadInput(f"{name}: row {place} has length {length:.4g}, expected unit vectors")


def check_input(rows: Rows, order: Places, threshold: float) -> None:
    """All that semantic deduplication asks of its input.

    Raises:
        BadInput: vectors that are not finite, not of length 1 or of different dimensions, an
            order that names a row twice or one that is not there, or a threshold out of range.
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"dedup threshold: expected a cosine in (0, 1], got {threshold}")
    check_vectors("vectors", rows.vectors_ND)
    check_vectors("earlier vectors", rows.earlier_ED)
    if rows.vectors_ND.shape[1] != rows.earlier_ED.shape[1]:
        raise BadInput(
            f"vectors have {rows.vectors_ND.shape[1]} dimensions, earlier ones "
            f"{rows.earlier_ED.shape[1]}: both must come from the same embedder"
        )
    num = len(rows.vectors_ND)
    unique = np.unique(order)
    if len(unique) != len(order) or (len(unique) and not 0 <= unique[0] <= unique[-1] < num):
        raise BadInput(f"order: expected row numbers below {num}, each at most once")
