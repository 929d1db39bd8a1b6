"""What curation found in each round: the two signals of quality, and what near duplicates took.

Reads the notes that the step left in its manifest.

    curation_of(found)[3]["quality"]["math"]["both"]
"""

from typing import Any

from posttrain.report.published import Published


def curation_of(found: Published) -> dict[int, dict[str, Any]]:
    """Round → who judged, `quality` by capability, and losses of near duplicates by label."""
    judges = found.of("grade")
    rounds = {}
    for number, step in found.of("curate").items():
        notes = step.metrics.get("notes", {})
        near = dict(notes.get("semantic_dedup", {}))
        judge = judges.get(number)
        rounds[number] = {
            "judge": judge.metrics["judge"] if judge else None,
            "unscored": judge.metrics["unscored"] if judge else 0,
            "quality": notes.get("quality", {}),
            "truncated": near.pop("truncated", {}),
            "losses": [
                (label, value, one["rows"], one["loss"])
                for label, values in near.items()
                for value, one in values.items()
            ],
        }
    return rounds
