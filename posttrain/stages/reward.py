"""Trains one member of the reward model, from the base, on all batches so far (4.1.2)."""

from posttrain.rows import Preference
from posttrain.settings.stages import RewardStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.training.circumstances import keep_books, training_job
from posttrain.training.reward import train_reward


def run(inputs: Inputs, settings: RewardStage, out: Output) -> None:
    """Write `model/` and the training curve `metrics.jsonl`."""
    rows = [
        row
        for folder in inputs.named("preferences:").values()
        for row in load_rows(folder / "train.jsonl", Preference)
    ]
    strong = [row for row in rows if row.strength.level >= settings.min_strength.level]
    for row in rows:
        if row.strength.level < settings.min_strength.level:
            out.drop(row.id, "too weak", strength=str(row.strength))
    out.part("strength", len(rows), len(strong))
    job = training_job(inputs, out)
    report = train_reward(inputs["base"], strong, out.path / "model", settings.reward, job)
    keep_books(report, len(strong), out)
