"""What every training is given beside its settings, and what it answers.

Knows no trainer, and imports nothing heavy.

    Job(work=Path("sft.partial/work"), resources=Resources(), precision="float32")
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from posttrain.settings.resources import Resources

Precision = Literal["float32", "bfloat16"]
Dropped = tuple[str, str]
"""The id of a row, and why it was not trained on."""


def _report_nothing(done: int, total: int) -> None:
    """Stand-in where nobody watches."""


@dataclass(frozen=True)
class Job:
    """The circumstances of one training; none of them is part of its identity."""

    work: Path
    """Folder of checkpoints and metrics.jsonl; a killed training continues from it."""
    resources: Resources
    precision: Precision
    """Autocast; weights and optimizer states are float32 either way."""
    template: Path | None = None
    """The plan's chat template; None takes the tokenizer's own."""
    progress: Callable[[int, int], None] = _report_nothing
    """Called with optimizer steps done and to do."""
    name: str = "training"
    """What trackers call this training: plan and step."""
    shared: Path | None = None
    """Folder for what other trainings can use as well; None keeps it in `work`."""
    tracked: Path | None = None
    """Folder for a tracker that writes files; None has it lie within `work`."""


@dataclass(frozen=True)
class TrainingReport:
    """What a finished training tells its manifest."""

    metrics: dict[str, float]
    """`steps`, `tokens`, `rows`, `first_loss`, and the mean over the last steps of all else."""
    dropped: list[Dropped] = field(default_factory=list)
