"""Matrix products that find pairs near a cosine, fast and without missing one.

In bfloat16 where the processor multiplies that faster, as a filter with a guard band; what passes
it is computed again in float32. Suffixes: B rows of a block, M rows compared with, D dimensions.

    near(block, against, floor=0.9499)
"""

import functools
import time

import numpy as np
import torch

from posttrain.dedup.contract import Hits, Places, Rows

ROUNDING_BAND = 1e-4
"""More than the worst rounding error of a float32 dot product of unit vectors."""
HALF_BAND = 0.008
"""The same of bfloat16: two factors and the result are each rounded to 8 bits, so a product of unit
vectors is wrong by 2^-8 + 2^-9 = 0.006 at most."""
LENGTHS = 128
"""Numbers of rows that a product's factors have are multiples of this."""
TILE = 4096
"""Rows compared with at a time: a tile of products stays in the processor's cache."""


@functools.cache
def filter_dtype() -> torch.dtype:
    """What products are filtered in: bfloat16 if this processor multiplies it 1.5 times as fast.

    Changes time, never a result.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.full((n, 384), 0.05, dtype=dtype) for n in (512, 2048))
        left @ right.T
        begun = time.perf_counter()
        for _ in range(3):
            left @ right.T
        seconds[dtype] = time.perf_counter() - begun
    half, full = torch.bfloat16, torch.float32
    return half if seconds[full] > 1.5 * seconds[half] else full


def cast(vectors: np.ndarray) -> torch.Tensor:
    """Vectors as the filter multiplies them."""
    return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)).to(filter_dtype())


def near(
    block_BD: torch.Tensor,
    block_names: Places,
    against_MD: torch.Tensor,
    against_names: Places,
    rows: Rows,
    floor: float,
) -> Hits:
    """Pairs of a block row and another row whose cosine in float32 reaches the floor.

    Args:
        block_BD: `cast` vectors.
        block_names: their names, to look the exact vectors up by.
        against_MD: `cast` vectors of the rows compared with.
        against_names: their names.
        rows: all exact vectors.
        floor: a cosine, the float32 rounding band below what is looked for.

    Returns:
        Hits whose rows are places in the block and whose others are places in `against_MD`.
    """
    low = floor - HALF_BAND if block_BD.dtype == torch.bfloat16 else floor
    parts = []
    padded_BD = _padded(block_BD)
    for start in range(0, len(against_MD), TILE):
        tile_MD = against_MD[start : start + TILE]
        products_BM = (padded_BD @ _padded(tile_MD).T)[: len(block_BD), : len(tile_MD)]
        best_B = products_BM.amax(dim=1)
        some = (best_B >= low).nonzero()[:, 0]
        if len(some):
            places = (products_BM[some].amax(dim=0) >= low).nonzero()[:, 0]
            parts.append(
                _exact(
                    some.numpy(), start + places.numpy(), block_names, against_names, rows, floor
                )
            )
    return Hits.joined(parts)


def _padded(vectors_BD: torch.Tensor) -> torch.Tensor:
    """Rows of zeros behind a bfloat16 matrix, up to one of few lengths.

    A product of a new shape has its kernel compiled first, which takes ten times as long as the
    product of a small cluster.
    """
    missing = -len(vectors_BD) % LENGTHS
    if not missing or vectors_BD.dtype != torch.bfloat16:
        return vectors_BD
    return torch.nn.functional.pad(vectors_BD, (0, 0, 0, missing))


def _exact(
    block_places: Places,
    places: Places,
    block_names: Places,
    against_names: Places,
    rows: Rows,
    floor: float,
) -> Hits:
    left = torch.from_numpy(rows.take(block_names[block_places]))
    right = torch.from_numpy(rows.take(against_names[places]))
    products = (left @ right.T).numpy()
    row, other = np.nonzero(products >= floor)
    return Hits(block_places[row], places[other], products[row, other])
