"""Measures a reward model on held-out pairs, by strength, beside "longer wins"."""

from collections import defaultdict
from collections.abc import Sequence

from posttrain.rows import Preference
from posttrain.scoring import RewardScorer
from posttrain.settings.stages import MeasureRewardStage
from posttrain.statistics import wilson
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows

_CONFIDENCE = 0.95


def run(inputs: Inputs, settings: MeasureRewardStage, out: Output) -> None:
    """Write `accuracy.json`: split → strength (and `all`) → rate with interval."""
    scorer = RewardScorer(inputs["reward"] / "model", inputs.paths.get("template"))
    result = {}
    for split in ("dev", "test"):
        pairs = [
            pair
            for folder in inputs.named("preferences:").values()
            for pair in load_rows(folder / f"{split}.jsonl", Preference)
        ]
        result[split] = _accuracies(scorer, pairs)
    out.write_json("accuracy", result)
    out.metrics(accuracy=result)


def _accuracies(scorer: RewardScorer, pairs: Sequence[Preference]) -> dict[str, dict[str, float]]:
    dialogs = [
        (*pair.prompt, *response)
        for pair in pairs
        for response in (pair.ranking()[0], pair.ranking()[-1])
    ]
    scores = scorer.score(dialogs)
    right: dict[str, list[bool]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        won = scores[2 * index] > scores[2 * index + 1]
        best, worst = (side[-1].content for side in (pair.ranking()[0], pair.ranking()[-1]))
        right["all"].append(won)
        right[str(pair.strength)].append(won)
        right["longer wins"].append(len(best) > len(worst))
    return {name: vars(wilson(sum(hits), len(hits), _CONFIDENCE)) for name, hits in right.items()}
