"""The preferences that the reward model and DPO train on.

Knows strengths; which batches are read is a stage's affair.

    strong_preferences([inputs["preferences"]], Strength.BETTER, out)
"""

from collections.abc import Iterable
from pathlib import Path

from posttrain.rows import Preference, Strength
from posttrain.steps.output import Output
from posttrain.tables import load_rows


def strong_preferences(
    folders: Iterable[Path], min_strength: Strength, out: Output
) -> list[Preference]:
    """Training pairs of preference steps that are strong enough; weaker ones in the books.

    The reward model and DPO train on *better* and *significantly better* only (section 4.2.1).
    """
    rows = [row for folder in folders for row in load_rows(folder / "train.jsonl", Preference)]
    strong = []
    for row in rows:
        if row.strength.level >= min_strength.level:
            strong.append(row)
        else:
            out.drop(row.id, "too weak", strength=str(row.strength))
    out.part("strength", len(rows), len(strong))
    return strong
