"""Exact deduplication: equal dialogs by hash, near-equal ones by cosine, both greedy, best first.

Knows rows' texts and unit vectors; knows no embedder, no scores and no thresholds. Never forms
connected components: a row goes because of one named row, not because of a chain.
Suffixes: N rows, E earlier rows, D dimensions, B rows of a block, M rows compared with.

    semantic_dedup(vectors_ND, order=range(len(vectors_ND)), threshold=0.95)
"""

import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.errors import BadInput
from posttrain.rows import Example, content_id

Vectors = NDArray[np.float32]

ROUNDING_BAND = 1e-4
"""More than the worst rounding error of a float32 dot product of unit vectors; pairs this close
to a decision are computed again in float64, so blocks and threads cannot change the result."""
EQUAL_WITHIN = 1e-7
"""Cosines are compared to within the precision of float32 vectors: equal ones reach 1."""


class Removal(NamedTuple):
    """One removed row and the row that stands for it."""

    row: int
    keeper: int
    """The most similar row it was compared with; N + e for row e of `earlier_ED`. Under the rule
    `seen` that row may have been removed itself."""
    cosine: float


def dialog_hash(example: Example) -> str:
    """Identity of a dialog: every turn, less Unicode form, line-end white space and outer blanks.

    Indentation stays: two programs that differ in it are two programs.
    """
    return content_id([[m.role, _plain(m.content), m.tool_calls] for m in example.messages])


def _plain(text: str) -> str:
    lines = unicodedata.normalize("NFC", text).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def exact_duplicates(examples: Sequence[Example], earlier: Sequence[Example] = ()) -> list[Removal]:
    """Every example whose dialog an earlier row or an example before it holds already.

    Args:
        examples: best first.
        earlier: rows that examples must not repeat; keeper N + e names one.
    """
    first: dict[str, int] = {}
    for place, example in enumerate(earlier):
        first.setdefault(dialog_hash(example), len(examples) + place)
    removals = []
    for index, example in enumerate(examples):
        keeper = first.setdefault(dialog_hash(example), index)
        if keeper != index:
            removals.append(Removal(index, keeper, 1.0))
    return removals


def semantic_dedup(
    vectors_ND: Vectors,
    order: Sequence[int],
    threshold: float,
    rule: Literal["kept", "seen"] = "kept",
    earlier_ED: Vectors | None = None,
    block: int = 1024,
) -> list[Removal]:
    """Greedy: a row goes if its largest cosine to the rows before it reaches the threshold.

    Exact, in blocks of float32 matrix products: time N x kept x D, memory block x 8192 floats
    beside the vectors compared with. Section 4.2.3; SemDeDup compares with rows `seen`, DEITA with
    rows `kept`.

    Args:
        vectors_ND: unit vectors.
        order: the N row numbers, best first.
        threshold: in (0, 1].
        rule: compare with kept rows, or with all rows before.
        earlier_ED: vectors that count as kept before the first row.
        block: rows compared at a time; changes memory and speed, not the result.

    Returns:
        Removals in the given order.

    Raises:
        BadInput: vectors that are not finite, not of length 1 or of different dimensions, an
            order that is no permutation, or a threshold out of range.
    """
    earlier = vectors_ND[:0] if earlier_ED is None else earlier_ED
    _check(vectors_ND, earlier, order, threshold)
    num_rows, num_earlier = len(vectors_ND), len(earlier)
    floor = threshold - ROUNDING_BAND
    # Filled from the left with the rows that count; `names` says which row each one is.
    against_MD = np.empty((num_earlier + num_rows, vectors_ND.shape[1]), np.float32)
    against_MD[:num_earlier] = earlier
    names = [num_rows + place for place in range(num_earlier)]
    removals: list[Removal] = []
    for start in range(0, num_rows, block):
        indices = list(order[start : start + block])
        block_BD = np.ascontiguousarray(vectors_ND[indices], dtype=np.float32)
        before = len(names)
        near = _near(block_BD, against_MD[:before], floor)
        inside_BB = np.tril(block_BD @ block_BD.T, -1)
        inside_max_B = inside_BB.max(axis=1)
        places: list[int] = []
        for row, index in enumerate(indices):
            candidates = near.get(row, [])
            if inside_max_B[row] >= floor and places:
                inside = _hits(inside_BB[row, places], floor)
                candidates = candidates + [before + hit for hit in inside]
            keeper, cosine = _best(block_BD[row], against_MD, candidates)
            removed = cosine >= threshold - EQUAL_WITHIN
            if removed:
                removals.append(Removal(index, names[keeper], min(1.0, cosine)))
            if not removed or rule == "seen":
                against_MD[len(names)] = block_BD[row]
                names.append(index)
                places.append(row)
    return removals


def _near(block_BD: Vectors, against_MD: Vectors, floor: float) -> dict[int, list[int]]:
    """For rows of the block that reach the floor: the rows that could be their nearest."""
    width = 8192
    found: dict[int, list[int]] = {}
    for start in range(0, len(against_MD), width):
        cosines_BM = block_BD @ against_MD[start : start + width].T
        best_B = cosines_BM.max(axis=1)
        for row in np.flatnonzero(best_B >= floor):
            hits = _hits(cosines_BM[row], floor)
            found.setdefault(int(row), []).extend(start + hit for hit in hits)
    return found


def _hits(cosines_M: Vectors, floor: float) -> list[int]:
    """Places of the cosines that may be the largest, if that reaches the floor."""
    least = max(float(cosines_M.max()) - ROUNDING_BAND, floor)
    return [int(place) for place in np.flatnonzero(cosines_M >= least)]


def _best(row_D: Vectors, against_MD: Vectors, candidates: Sequence[int]) -> tuple[int, float]:
    """The candidate with the largest cosine in float64, the first of equal ones; -1 if none."""
    if not candidates:
        return -1, -1.0
    near_CD = against_MD[list(candidates)].astype(np.float64)
    row = row_D.astype(np.float64)
    lengths_C = np.sqrt(np.einsum("cd,cd->c", near_CD, near_CD) * np.dot(row, row))
    cosines_C = np.round(np.einsum("cd,d->c", near_CD, row) / lengths_C, 9)
    best = int(np.argmax(cosines_C))
    return candidates[best], float(cosines_C[best])


def _check(vectors_ND: Vectors, earlier: Vectors, order: Sequence[int], threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise BadInput(f"dedup threshold: expected a cosine in (0, 1], got {threshold}")
    for name, matrix in (("vectors", vectors_ND), ("earlier vectors", earlier)):
        if matrix.ndim != 2:
            raise BadInput(f"{name}: expected a matrix of rows, got shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise BadInput(f"{name}: some numbers are not finite; embed these rows again")
        lengths = np.linalg.norm(matrix, axis=1)
        wrong = np.flatnonzero(np.abs(lengths - 1) > 1e-3)
        if len(wrong):
            raise BadInput(
                f"{name}: row {wrong[0]} has length {lengths[wrong[0]]:.4g}, expected unit vectors"
            )
    if vectors_ND.shape[1] != earlier.shape[1]:
        raise BadInput(
            f"vectors have {vectors_ND.shape[1]} dimensions, earlier ones {earlier.shape[1]}: "
            "both must come from the same embedder"
        )
    if sorted(order) != list(range(len(vectors_ND))):
        raise BadInput(f"order: expected each row number below {len(vectors_ND)} exactly once")
