"""Measures a reward model on held-out pairs: accuracy, calibration and length, by what they are.

A pair that does not fit the model's context is dropped and counted.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing

from posttrain.models.devices import pick_device
from posttrain.reward_measures import CONFIDENCE, ScoredPair, measures
from posttrain.rows import Preference, Strength
from posttrain.scoring import TOO_LONG, RewardScorer, score_pairs
from posttrain.settings.stages import MeasureRewardStage
from posttrain.statistics import wilson
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows


def run(inputs: Inputs, settings: MeasureRewardStage, out: Output) -> None:
    """Write `accuracy.json`: split → strength, `all` or `trained` → rate with interval.

    `trained` are the strengths that training uses. `members.json` has the same of each variant, on
    dev. `measures.json` has the model's `posttrain.reward_measures` by split.
    """
    accuracy, measured = {}, {}
    with closing(_scorer(inputs, "reward", settings)) as scorer:
        for split in ("dev", "test"):
            pairs = _pairs(inputs, split)
            scored = _scored(scorer, pairs)
            kept = {one.pair.id for one in scored}
            for pair in pairs:
                if pair.id not in kept:
                    out.drop(pair.id, TOO_LONG)
            accuracy[split] = _accuracies(scored, settings.min_strength)
            measured[split] = measures(scored)
            out.part(f"measure {split}", len(pairs), len(scored))
    dev, members = _pairs(inputs, "dev"), {}
    for name in inputs.named("member:"):
        with closing(_scorer(inputs, name, settings)) as scorer:
            members[name.partition(":")[2]] = _accuracies(
                _scored(scorer, dev), settings.min_strength
            )
    out.write_json("accuracy", accuracy)
    out.write_json("members", members)
    out.write_json("measures", measured)
    out.metrics(accuracy=accuracy, members=members, measures=measured)


def _scorer(inputs: Inputs, name: str, settings: MeasureRewardStage) -> RewardScorer:
    return RewardScorer(
        inputs[name] / "model",
        inputs.paths.get("template"),
        device=pick_device(inputs.resources.device),
        vllm=settings.scoring.vllm,
    )


def _pairs(inputs: Inputs, split: str) -> list[Preference]:
    return [
        pair
        for folder in inputs.named("preferences:").values()
        for pair in load_rows(folder / f"{split}.jsonl", Preference)
    ]


def _scored(scorer: RewardScorer, pairs: Sequence[Preference]) -> list[ScoredPair]:
    """The pairs that fit the model's context, with both scores."""
    found = zip(pairs, score_pairs(scorer, pairs), strict=True)
    return [ScoredPair(pair, *scores) for pair, scores in found if scores is not None]


def _accuracies(
    scored: Sequence[ScoredPair], min_strength: Strength
) -> dict[str, dict[str, float]]:
    right: dict[str, list[bool]] = defaultdict(list)
    for one in scored:
        right["all"].append(one.won)
        right[str(one.pair.strength)].append(one.won)
        if one.pair.strength.level >= min_strength.level:
            right["trained"].append(one.won)
            right["trained, longer wins"].append(one.longer_won)
        right["longer wins"].append(one.longer_won)
    return {name: vars(wilson(sum(hits), len(hits), CONFIDENCE)) for name, hits in right.items()}
