"""Mode `exact`: every row is compared with every row before it that counts.

Time N x kept x D products, memory one filter copy of the rows that count. Suffixes: N rows,
D dimensions, M rows that count, B rows of a block.

    dedup_exact(Rows(vectors_ND, earlier_ED), order, 0.95, "kept")
"""

import numpy as np
import torch

from posttrain.dedup.contract import Hits, Places, Removal, Rows, Rule
from posttrain.dedup.greedy import decide
from posttrain.dedup.products import ROUNDING_BAND, TILE, cast, filter_dtype, near


def dedup_exact(
    rows: Rows, order: Places, threshold: float, rule: Rule, block: int = 1024
) -> list[Removal]:
    """Removals in the given order.

    Args:
        rows: checked vectors; earlier ones count as kept before the first row.
        order: names of the rows to go through, best first; not all need be there.
        threshold: in (0, 1].
        rule: compare with kept rows, or with all rows before.
        block: rows compared at a time; changes memory and speed, not the result.
    """
    num, num_earlier = len(rows.vectors_ND), len(rows.earlier_ED)
    against_MD = torch.empty(
        (num_earlier + len(order), rows.vectors_ND.shape[1]), dtype=filter_dtype()
    )
    names_M = np.empty(len(against_MD), np.int64)
    names_M[:num_earlier] = np.arange(num, num + num_earlier)
    for start in range(0, num_earlier, TILE):
        end = min(start + TILE, num_earlier)
        against_MD[start:end] = cast(rows.earlier_ED[start:end])
    before, floor = num_earlier, threshold - ROUNDING_BAND
    removals: list[Removal] = []
    for start in range(0, len(order), block):
        names_B = order[start : start + block]
        block_BD = cast(rows.take(names_B))
        found = near(block_BD, names_B, against_MD[:before], names_M[:before], rows, floor)
        outside = Hits(found.row_H, names_M[found.other_H], found.cosine_H)
        inside = near(block_BD, names_B, block_BD, names_B, rows, floor)
        gone, counts_B = decide(names_B, outside, inside, rows, threshold, rule)
        removals += gone
        after = before + int(counts_B.sum())
        against_MD[before:after] = block_BD[torch.from_numpy(counts_B)]
        names_M[before:after] = names_B[counts_B]
        before = after
    return removals
