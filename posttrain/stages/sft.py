"""Trains one member of the SFT model, or round 0's policy, from the pre-trained base (4.1.3)."""

from posttrain.rows import Example
from posttrain.settings.stages import SftStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.training.circumstances import keep_books, training_job
from posttrain.training.sft import train_sft
from posttrain.training_data import human_examples


def run(inputs: Inputs, settings: SftStage, out: Output) -> None:
    """Write `model/` and the training curve `metrics.jsonl`.

    Rows come from curation; round 0 has none yet and trains on the human-written examples.
    """
    if "curate" in inputs.paths:
        rows = load_rows(inputs["curate"] / "train.jsonl", Example)
    else:
        rows = human_examples(inputs, out)
    job = training_job(inputs, out)
    report = train_sft(inputs["base"], rows, out.path / "model", settings.sft, job)
    keep_books(report, len(rows), out)
