"""What the processes of a launched training are told: a file that all machines can read.

Order.model_validate_json(Path("sft.partial/work/launch/order.json").read_text())
"""

from pathlib import Path
from typing import Any, Literal

from posttrain.settings.base import Settings
from posttrain.settings.resources import Resources
from posttrain.training.job import Precision

ORDER, ROWS, REPORT = "order.json", "rows.jsonl", "report.json"
PROGRESS, ERROR, ACCELERATE = "progress.json", "error-{rank}.json", "accelerate.yaml"

LAUNCH = "launch"
"""Folder, within a training's work, of the order and its answers."""

Kind = Literal["reward", "sft", "dpo", "pretrain"]


class Order(Settings):
    """One training."""

    kind: Kind
    start: Path
    """The model that is trained."""
    out: Path
    settings: dict[str, Any]
    work: Path
    resources: Resources
    precision: Precision
    name: str
    shared: Path | None
    tracked: Path | None
    template: Path | None
    head: str
    """Address of the first machine."""
    port: int

    @property
    def folder(self) -> Path:
        """Where the order and its answers lie."""
        return self.work / LAUNCH
