"""Who judged the tasks of each round, how well they agree, and what their habits are.

Reads the notes that the step `preferences` left in its manifest; draws nothing.

    annotators_of(found)["rounds"][2]["agreement"]["alpha"]["side"]["value"]
"""

from typing import Any

from posttrain.report.published import Published

_SHORT = {
    "marginally better": "marginally",
    "slightly better": "slightly",
    "better": "better",
    "significantly better": "significantly",
}


def annotators_of(found: Published) -> dict[str, Any] | None:
    """The rounds whose preferences somebody judged, and everybody's name; None without any."""
    rounds = {
        number: manifest.metrics["annotation"]
        for number, manifest in found.of("preferences").items()
        if "annotation" in manifest.metrics
    }
    if not rounds:
        return None
    labels = found.of("label")
    for number, one in rounds.items():
        # The judge answered the tasks in the round that published them.
        judge = labels.get(number - 1)
        one["judging"] = judge.metrics if judge is not None else None
        for annotator in one["annotators"].values():
            annotator["shares"] = _shares(annotator["strengths"])
    names = sorted({name for one in rounds.values() for name in one["annotators"]})
    return {
        "rounds": rounds,
        "names": names,
        "strengths": list(_SHORT.values()),
        "capabilities": sorted(
            {
                capability
                for one in rounds.values()
                for capability in one.get("judge", {}).get("by_capability", {})
            }
        ),
    }


def _shares(strengths: dict[str, int]) -> dict[str, float | None]:
    total = sum(strengths.values())
    return {
        short: strengths.get(name, 0) / total if total else None for name, short in _SHORT.items()
    }
