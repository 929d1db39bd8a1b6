"""Measures a reward model on held-out pairs, by strength, beside "longer wins".

A pair that does not fit the model's context is dropped and counted.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.models.devices import pick_device
from posttrain.rows import Preference, Strength
from posttrain.scoring import TOO_LONG, Dialog, RewardScorer
from posttrain.settings.stages import MeasureRewardStage
from posttrain.statistics import wilson
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows

_CONFIDENCE = 0.95


class _Scored(NamedTuple):
    """A pair with the scores of its best and its worst response."""

    pair: Preference
    best: float
    worst: float


def run(inputs: Inputs, settings: MeasureRewardStage, out: Output) -> None:
    """Write `accuracy.json`: split → strength, `all` or `trained` → rate with interval.

    `trained` are the strengths that training uses. `members.json` has the same of each variant, on
    dev.
    """
    result = {}
    scorer = _scorer(inputs, "reward")
    for split in ("dev", "test"):
        pairs = _pairs(inputs, split)
        scored = _scored(scorer, pairs)
        kept = {one.pair.id for one in scored}
        for pair in pairs:
            if pair.id not in kept:
                out.drop(pair.id, TOO_LONG)
        result[split] = _accuracies(scored, settings.min_strength)
        out.part(f"measure {split}", len(pairs), len(scored))
    dev = _pairs(inputs, "dev")
    members = {
        name.partition(":")[2]: _accuracies(
            _scored(_scorer(inputs, name), dev), settings.min_strength
        )
        for name in inputs.named("member:")
    }
    out.write_json("accuracy", result)
    out.write_json("members", members)
    out.metrics(accuracy=result, members=members)


def _scorer(inputs: Inputs, name: str) -> RewardScorer:
    return RewardScorer(
        inputs[name] / "model",
        inputs.paths.get("template"),
        device=pick_device(inputs.resources.device),
    )


def _pairs(inputs: Inputs, split: str) -> list[Preference]:
    return [
        pair
        for folder in inputs.named("preferences:").values()
        for pair in load_rows(folder / f"{split}.jsonl", Preference)
    ]


def _scored(scorer: RewardScorer, pairs: Sequence[Preference]) -> list[_Scored]:
    """The pairs that fit the model's context, with both scores."""
    dialogs = [
        Dialog((*pair.prompt, *response), pair.tools)
        for pair in pairs
        for response in (pair.ranking()[0], pair.ranking()[-1])
    ]
    scores = scorer.score(dialogs)
    return [
        _Scored(pair, best, worst)
        for pair, best, worst in zip(pairs, scores[::2], scores[1::2], strict=True)
        if best is not None and worst is not None
    ]


def _accuracies(scored: Sequence[_Scored], min_strength: Strength) -> dict[str, dict[str, float]]:
    right: dict[str, list[bool]] = defaultdict(list)
    for pair, best_score, worst_score in scored:
        won = best_score > worst_score
        best, worst = (side[-1].content for side in (pair.ranking()[0], pair.ranking()[-1]))
        right["all"].append(won)
        right[str(pair.strength)].append(won)
        if pair.strength.level >= min_strength.level:
            right["trained"].append(won)
            right["trained, longer wins"].append(len(best) > len(worst))
        right["longer wins"].append(len(best) > len(worst))
    return {name: vars(wilson(sum(hits), len(hits), _CONFIDENCE)) for name, hits in right.items()}
