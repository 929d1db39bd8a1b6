"""Measures a reward model on held-out pairs, by strength, beside "longer wins".

A pair that does not fit the model's context is dropped and counted.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.models.devices import pick_device
from posttrain.rows import Preference
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
    """Write `accuracy.json`: split → strength (and `all`) → rate with interval."""
    scorer = RewardScorer(
        inputs["reward"] / "model",
        inputs.paths.get("template"),
        device=pick_device(inputs.resources.device),
    )
    result = {}
    for split in ("dev", "test"):
        pairs = [
            pair
            for folder in inputs.named("preferences:").values()
            for pair in load_rows(folder / f"{split}.jsonl", Preference)
        ]
        scored = _scored(scorer, pairs, out)
        result[split] = _accuracies(scored)
        out.part(f"measure {split}", len(pairs), len(scored))
    out.write_json("accuracy", result)
    out.metrics(accuracy=result)


def _scored(scorer: RewardScorer, pairs: Sequence[Preference], out: Output) -> list[_Scored]:
    """The pairs that fit the model's context, with both scores."""
    dialogs = [
        Dialog((*pair.prompt, *response), pair.tools)
        for pair in pairs
        for response in (pair.ranking()[0], pair.ranking()[-1])
    ]
    scores = scorer.score(dialogs)
    scored = []
    for pair, best, worst in zip(pairs, scores[::2], scores[1::2], strict=True):
        if best is None or worst is None:
            out.drop(pair.id, TOO_LONG)
        else:
            scored.append(_Scored(pair, best, worst))
    return scored


def _accuracies(scored: Sequence[_Scored]) -> dict[str, dict[str, float]]:
    right: dict[str, list[bool]] = defaultdict(list)
    for pair, best_score, worst_score in scored:
        won = best_score > worst_score
        best, worst = (side[-1].content for side in (pair.ranking()[0], pair.ranking()[-1]))
        right["all"].append(won)
        right[str(pair.strength)].append(won)
        right["longer wins"].append(len(best) > len(worst))
    return {name: vars(wilson(sum(hits), len(hits), _CONFIDENCE)) for name, hits in right.items()}
