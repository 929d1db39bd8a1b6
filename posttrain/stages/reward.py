"""Trains one member of the reward model, from the base, on all batches so far (4.1.2)."""

from posttrain.preference_rows import strong_preferences
from posttrain.settings.stages import RewardStage
from posttrain.steps.output import Inputs, Output
from posttrain.training.circumstances import keep_books, training_job
from posttrain.training.launching import run_training
from posttrain.training.reward import train_reward


def run(inputs: Inputs, settings: RewardStage, out: Output) -> None:
    """Write `model/` and the training curve `metrics.jsonl`."""
    folders = inputs.named("preferences:").values()
    strong = strong_preferences(folders, settings.min_strength, out)
    job = training_job(inputs, out)
    start, model = inputs.model("base"), out.path / "model"
    report = run_training(train_reward, "reward", start, strong, model, settings.reward, job)
    keep_books(report, len(strong), out)
