"""Trains one member of the SFT model, or round 0's policy, from the pre-trained base (4.1.3)."""

from posttrain.rows import Example
from posttrain.settings.stages import SftStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.training.circumstances import keep_books, training_job
from posttrain.training.launching import run_training
from posttrain.training.sft import train_sft


def run(inputs: Inputs, settings: SftStage, out: Output) -> None:
    """Write `model/` and the training curve `metrics.jsonl`."""
    rows = load_rows(inputs["examples"] / "train.jsonl", Example)
    job = training_job(inputs, out)
    report = run_training(
        train_sft, "sft", inputs.model("base"), rows, out.path / "model", settings.sft, job
    )
    keep_books(report, len(rows), out)
