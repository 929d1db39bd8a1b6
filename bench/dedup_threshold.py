"""Which threshold of semantic dedup finds planted duplicates without removing different rows.

Takes the chosen responses of a finished run, plants copies that differ on the surface alone (case,
blanks, a full stop), and tells for each threshold the share of planted copies that is found and
the share of the run's own rows that is lost, by capability.

    python -m bench.dedup_threshold runs/tiny
"""

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench.machine import write_result
from posttrain.dedup import dialog_hash, exact_duplicates, semantic_dedup
from posttrain.embedding import Embedder, dialog_text, embedder_folder
from posttrain.rows import Example, Message
from posttrain.tables import json_lines

THRESHOLDS = (0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)
SHARE, SEED = 0.2, 0
ROOT = Path(__file__).parent.parent


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="A finished run, e.g. runs/tiny.")
    options = parser.parse_args()
    rows = _rows(options.run)
    rng = random.Random(SEED)
    # A capability at a time, as the pipeline does: rows are compared inside their capability.
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        embedder = Embedder(embedder_folder("minilm", ROOT), Path(cache))
        for capability in sorted({row.capability for row in rows}):
            own = [row for row in rows if row.capability == capability]
            known = {dialog_hash(row) for row in own}
            copies = [_copy(row, rng) for row in rng.sample(own, int(SHARE * len(own)))]
            planted = [row for row in copies if dialog_hash(row) not in known]
            vectors = embedder.embed(
                [dialog_text(row.messages) for row in [*own, *planted]]
            ).vectors_ND
            result[capability] = {"rows": len(own), "planted": len(planted)}
            for threshold in THRESHOLDS:
                removed = semantic_dedup(vectors, range(len(vectors)), threshold)
                gone = Counter(one.row >= len(own) for one in removed)
                result[capability][str(threshold)] = {
                    "planted found": round(gone[True] / len(planted), 4),
                    "own rows lost": round(gone[False] / len(own), 4),
                }
    write_result(
        ROOT / "bench" / "results" / "dedup-threshold.json",
        {"command": "python -m bench.dedup_threshold RUN", "seed": SEED, "capabilities": result},
    )


def _rows(run: Path) -> list[Example]:
    """The chosen responses of every round, equal dialogs once."""
    rows = [
        Example.model_validate(
            {
                "id": f"{path.parent.parent.name}/{row['id']}",
                "messages": [*row["prompt"], row["messages"][-1]],
                "capability": row["capability"],
                "source": "bench",
            }
        )
        for path in sorted(run.glob("round-*/select/selected.jsonl"))
        for row in json_lines(path)
    ]
    equal = {one.row for one in exact_duplicates(rows)}
    return [row for place, row in enumerate(rows) if place not in equal]


def _copy(row: Example, rng: random.Random) -> Example:
    """The same dialog as another person would have typed it."""
    turns = [_retyped(turn, rng) if turn.role == "user" else turn for turn in row.messages]
    return row.model_copy(update={"id": f"{row.id}/copy", "messages": tuple(turns)})


def _retyped(turn: Message, rng: random.Random) -> Message:
    text = turn.content
    changed = rng.choice(
        (
            text[:1].upper() + text[1:] + ".",
            text.upper(),
            text.replace(" ", "  ") + " ",
            f"{text} please",
            text.rstrip("?.") + " ?",
        )
    )
    return turn.model_copy(update={"content": changed})


if __name__ == "__main__":
    main()
