"""Decides on dev whether a round's model becomes the next policy; the choice is one small file."""

from collections.abc import Mapping
from typing import Any

from posttrain.errors import GuardFailed
from posttrain.settings.plan import Gate
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
    lengths = measured["dev"]["sampled"]["lengths"]
    _guard_lengths(lengths, before, settings.gate)
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
            "mean_tokens": before["mean_tokens"]
            if before and not promoted
            else lengths["mean_tokens"],
        },
    )
    out.metrics(promoted=promoted, dev=dev, best_dev=max(dev, best))


def _guard_lengths(
    lengths: Mapping[str, float], before: Mapping[str, Any] | None, gate: Gate
) -> None:
    """Stop at a model that has not learned to end, or whose responses grow out of hand.

    Raises:
        GuardFailed: naming the measure, its limit and the setting.
    """
    if lengths["eos_share"] < gate.min_eos_share:
        raise GuardFailed(
            f"only {lengths['eos_share']:.0%} of the sampled dev responses end by themselves, "
            f"gate.min_eos_share asks for {gate.min_eos_share:.0%}; is the termination token "
            "among the SFT targets?"
        )
    limit = gate.max_length_growth * float(before["mean_tokens"]) if before else float("inf")
    if lengths["mean_tokens"] > limit:
        raise GuardFailed(
            f"dev responses have {lengths['mean_tokens']:.1f} tokens on average, more than "
            f"gate.max_length_growth ({gate.max_length_growth}) times the last policy's"
        )
