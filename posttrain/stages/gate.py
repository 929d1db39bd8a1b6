"""Decides on dev whether a round's model becomes the next policy; the choice is one small file."""

from posttrain.settings.stages import GateStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_json


def run(inputs: Inputs, settings: GateStage, out: Output) -> None:
    """Write `policy.json`: which step's model goes on, and why."""
    measured = read_json(inputs["measure"] / "rates.json")
    dev = float(measured["dev"]["sampled"]["all"]["value"])
    before = read_json(inputs["before"] / "policy.json") if "before" in inputs.paths else None
    best = float(before["best_dev"]) if before else dev
    promoted = before is None or dev >= best - settings.gate.tolerance
    fingerprint = str(read_json(inputs["candidate"] / "manifest.json")["fingerprint"])
    chosen = {"step": settings.candidate, "fingerprint": fingerprint}
    if before is not None and not promoted:
        chosen = {"step": before["step"], "fingerprint": before["fingerprint"]}
    out.write_json(
        "policy",
        {
            **chosen,
            "round": settings.round,
            "promoted": promoted,
            "dev": dev,
            "best_dev": max(dev, best),
            "tolerance": settings.gate.tolerance,
        },
    )
    out.metrics(promoted=promoted, dev=dev, best_dev=max(dev, best))
