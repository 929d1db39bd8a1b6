"""Trains one member of the DPO model, on the SFT model, with the latest preferences (4.1.4)."""

from posttrain.preference_rows import strong_preferences
from posttrain.rows import Preference
from posttrain.settings.stages import DpoStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.training.circumstances import keep_books, training_job
from posttrain.training.dpo import train_dpo
from posttrain.training.launching import run_training


def run(inputs: Inputs, settings: DpoStage, out: Output) -> None:
    """Write `model/` and the training curve `metrics.jsonl`."""
    folders, made = [inputs["preferences"]], []
    if "select" in inputs.paths:
        made = load_rows(inputs["select"] / "pairs.jsonl", Preference)
    strong = strong_preferences(folders, settings.min_strength, out, made, settings.without)
    job = training_job(inputs, out)
    policy = inputs.model("sft")
    report = run_training(train_dpo, "dpo", policy, strong, out.path / "model", settings.dpo, job)
    keep_books(report, len(strong), out)
