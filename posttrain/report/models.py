"""The models of each round beside each other: by level of the prompts, and variants by stage.

Knows what measure steps publish; draws nothing.

    by_level(Published.of_run(run), run.plan)["hardest"]["difference"]["low"]
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from posttrain.comparison import answers, difference, levels, rate_of
from posttrain.report.figures import BASE
from posttrain.report.published import Published
from posttrain.settings.plan import Plan

_STAGES = ("rm", "sft", "dpo")
DIALS = {
    "chosen_drop": "chosen responses less likely than under the SFT model, nats (end of DPO)",
    "margin": "margin of implicit rewards (end of DPO)",
    "kl": "divergence from the SFT model, nats a sampled response",
    "kl_per_token": "the same a token",
    "eos_share": "sampled responses that end by themselves",
    "length_growth": "their length beside the round before's",
    "repetition": "their 4-grams that are repeats",
}
"""What each dial says."""


def by_level(found: Published, plan: Plan) -> dict[str, Any] | None:
    """Split → round → level → rate of sampled responses; None where prompts have no levels.

    `hardest` is the paired difference on test prompts of the top level, the newest round minus
    round 1.
    """
    measured = found.measures()
    splits = ("dev", "test")
    mix, confidence = plan.mix, plan.evaluation.confidence
    every = {
        split: {n: answers(found.folder(one), split, "sampled") for n, one in measured.items()}
        for split in splits
    }
    known = sorted({level for one in every["test"].values() for level in levels(one)})
    if len(known) < 2:
        return None
    rates = {
        split: {
            number: {
                level: vars(rate)
                for level in known
                if (rate := rate_of(one, mix, confidence, level)) is not None
            }
            for number, one in by_round.items()
        }
        for split, by_round in every.items()
    }
    rounds = sorted(number for number in measured if number > BASE + 1)
    hardest = None
    if len(rounds) > 1:
        pair = (every["test"][rounds[0]], every["test"][rounds[-1]])
        gap = difference([pair], mix, confidence, known[-1])
        if gap is not None:
            hardest = {
                "level": known[-1],
                "before": rounds[0],
                "after": rounds[-1],
                "difference": vars(gap),
            }
    return {"levels": known, "rates": rates, "hardest": hardest}


def dials_of(found: Published) -> dict[int, dict[str, Any]]:
    """Round → dial → its value, its limit and whether it is past it."""
    return {number: one.metrics["dials"] for number, one in found.of("dials").items()}


def members_of(found: Published) -> dict[str, Any] | None:
    """Stage → model (variants before their average) → round → rate; None where none is measured.

    Reward models are rated by their accuracy on dev pairs of the strengths they train on, policies
    by their greedy pass rate on dev. `checks` says by stage and round how far each average lies
    from the best of its variants.
    """
    rates: dict[str, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for number, manifest in found.of("measure-rm").items():
        accuracy = manifest.metrics["accuracy"].get("dev", {})
        models = {**manifest.metrics["members"], "rm": accuracy}
        for model, by_strength in models.items():
            if "trained" in by_strength:
                rates["rm"][model][number] = by_strength["trained"]
    for number, manifest in found.of("measure-members").items():
        for model, by_capability in manifest.metrics["members"].items():
            if "all" in by_capability:
                rates[model.partition("-")[0]][model][number] = by_capability["all"]
    stages = {stage: dict(rates[stage]) for stage in _STAGES if rates[stage]}
    numbers = sorted({n for stage in stages.values() for one in stage.values() for n in one})
    checks = {stage: _against_best(stage, models) for stage, models in stages.items()}
    return {"stages": stages, "rounds": numbers, "checks": checks} if stages else None


def _against_best(stage: str, models: Mapping[str, Mapping[int, Any]]) -> dict[int, Any]:
    """Round → the best of two or more variants, and the average's rate minus its rate."""
    found = {}
    for number, average in models.get(stage, {}).items():
        variants = {
            name: by_round[number]["value"]
            for name, by_round in models.items()
            if name != stage and number in by_round
        }
        if len(variants) > 1:
            best = max(variants, key=lambda name: variants[name])
            found[number] = {"best": best, "gap": average["value"] - variants[best]}
    return found
