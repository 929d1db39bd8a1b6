"""Decides on dev whether a round's model becomes the next policy; the choice is one small file.

A round that regresses past the tolerance is kept back, and the best policy so far goes on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import GuardFailed
from posttrain.settings.plan import Gate
from posttrain.settings.stages import GateStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_json


def run(inputs: Inputs, settings: GateStage, out: Output) -> None:
    """Write `policy.json`: which step's model goes on and its dev figures; beside it the best.

    `best-CAPABILITY.json` names the model that was best at it on dev so far, promoted or not.
    """
    mine = _measured(inputs, settings)
    before = read_json(inputs["before"] / "policy.json") if "before" in inputs.paths else None
    best = before["best"] if before else mine
    _guard_lengths(mine, before, settings.gate)
    promoted = before is None or mine["dev"] >= best["dev"] - settings.gate.tolerance
    chosen = mine if promoted else best
    policy = {
        **chosen,
        "round": settings.round,
        "promoted": promoted,
        "best": mine if mine["dev"] >= best["dev"] else best,
        "tolerance": settings.gate.tolerance,
    }
    out.write_json("policy", policy)
    for capability in settings.capabilities:
        out.write_json(f"best-{capability}", _best_at(capability, inputs, mine, policy))
    out.metrics(promoted=promoted, dev=mine["dev"], best_dev=policy["best"]["dev"])


def _measured(inputs: Inputs, settings: GateStage) -> dict[str, Any]:
    """This round's model with what the gate looks at.

    Raises:
        GuardFailed: no dev response could be verified, so there is nothing to decide by.
    """
    dev = _sampled_dev(inputs["measure"])
    if "all" not in dev:
        raise GuardFailed(
            "no recipe of the mix verifies its dev responses, so the gate has nothing to decide "
            "by; give at least one recipe a verify hook"
        )
    return {
        "step": settings.candidate,
        "fingerprint": str(read_json(inputs["candidate"] / "manifest.json")["fingerprint"]),
        "dev": float(dev["all"]["value"]),
        "mean_tokens": float(dev["lengths"]["mean_tokens"]),
        "eos_share": float(dev["lengths"]["eos_share"]),
    }


def _best_at(
    capability: str, inputs: Inputs, mine: Mapping[str, Any], policy: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The model that was best at a capability on dev so far; the policy where nothing verifies."""
    rate = _sampled_dev(inputs["measure"]).get(capability)
    if rate is None:
        return policy
    here = {**mine, "dev": float(rate["value"])}
    if "before" not in inputs.paths:
        return here
    before = read_json(inputs["before"] / f"best-{capability}.json")
    return here if here["dev"] >= before["dev"] else before


def _sampled_dev(folder: Path) -> dict[str, Any]:
    rates: dict[str, Any] = read_json(folder / "rates.json")["dev"]["sampled"]
    return rates


def _guard_lengths(mine: Mapping[str, Any], before: Mapping[str, Any] | None, gate: Gate) -> None:
    """Stop at a model that has not learned to end, or whose responses grow out of hand.

    Raises:
        GuardFailed: naming the measure, its limit and the setting.
    """
    if mine["eos_share"] < gate.min_eos_share:
        raise GuardFailed(
            f"only {mine['eos_share']:.0%} of the sampled dev responses end by themselves, "
            f"gate.min_eos_share asks for {gate.min_eos_share:.0%}; is the termination token "
            "among the SFT targets?"
        )
    limit = gate.max_length_growth * float(before["mean_tokens"]) if before else float("inf")
    if mine["mean_tokens"] > limit:
        raise GuardFailed(
            f"dev responses have {mine['mean_tokens']:.1f} tokens on average, more than "
            f"gate.max_length_growth ({gate.max_length_growth}) times the last policy's"
        )
