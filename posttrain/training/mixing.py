"""How often a variant sees the rows of each capability, where that differs from the data.

Knows capabilities and ids. Which rows are left out or seen once more depends on the row alone.

    times("row-1", "math", {"math": 1.5}, seed=0)
"""

import math
from collections.abc import Sequence
from typing import TypeVar

from posttrain.errors import BadInput
from posttrain.rows import Example, Preference, stable_seed
from posttrain.settings.training import StageTraining
from posttrain.training.job import Dropped

LEFT_OUT = "left out by the variant's mix"
RowT = TypeVar("RowT", Example, Preference)


def times(row_id: str, wanted: float, seed: int) -> int:
    """How often a row is seen: a whole number, `wanted` in the mean over rows."""
    whole = math.floor(wanted)
    place = stable_seed("mix", seed, row_id) / 2**31
    return whole + (place < wanted - whole)


def mixed(rows: Sequence[RowT], settings: StageTraining) -> tuple[Sequence[RowT], list[Dropped]]:
    """The rows, each standing there as often as it is seen, and those that are not seen.

    Raises:
        BadInput: no row has a capability that is named.
    """
    if not settings.mix:
        return rows, []
    found = {row.capability for row in rows}
    strangers = sorted(set(settings.mix) - found)
    if strangers:
        raise BadInput(f"mix.{strangers[0]}: no row has this capability, but {sorted(found)}")
    seen: list[RowT] = []
    left_out: list[Dropped] = []
    for row in rows:
        number = times(row.id, settings.mix.get(row.capability, 1.0), settings.data_seed)
        seen += [row] * number
        if not number:
            left_out.append((row.id, LEFT_OUT))
    return seen, left_out
