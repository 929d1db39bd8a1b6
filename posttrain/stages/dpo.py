"""Trains one member of the DPO model, on the SFT model, with the latest preferences (4.1.4)."""

from posttrain.rows import Preference
from posttrain.settings.stages import DpoStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.training.circumstances import keep_books, training_job
from posttrain.training.dpo import train_dpo


def run(inputs: Inputs, settings: DpoStage, out: Output) -> None:
    """Write `model/` and the training curve `metrics.jsonl`."""
    rows = load_rows(inputs["preferences"] / "train.jsonl", Preference)
    strong = [row for row in rows if row.strength.level >= settings.min_strength.level]
    for row in rows:
        if row.strength.level < settings.min_strength.level:
            out.drop(row.id, "too weak", strength=str(row.strength))
    out.part("strength", len(rows), len(strong))
    job = training_job(inputs, out)
    policy = inputs["sft"] / "model"
    report = train_dpo(policy, strong, out.path / "model", settings.dpo, job)
    keep_books(report, len(strong), out)
