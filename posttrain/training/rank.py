"""One process of a launched training: trains as a process by itself would, and answers in files.

python -m posttrain.training.rank work/launch/order.json
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from pydantic import BaseModel

from posttrain.errors import PosttrainError, StepFailed
from posttrain.rows import Document, Example, Preference
from posttrain.settings.base import parse
from posttrain.settings.pretraining import PretrainSettings
from posttrain.settings.training import (
    DpoSettings,
    RewardSettings,
    SftSettings,
    TrainingSettings,
)
from posttrain.steps import ending
from posttrain.tables import load_rows, write_json
from posttrain.training.arguments import on_cpu
from posttrain.training.dpo import train_dpo
from posttrain.training.job import Job, TrainingReport
from posttrain.training.order import ERROR, PROGRESS, REPORT, ROWS, Order
from posttrain.training.pretrain import train_text
from posttrain.training.ranks import is_main, leave, num_ranks
from posttrain.training.reward import train_reward
from posttrain.training.sft import train_sft

TRAININGS: dict[str, tuple[Callable[..., TrainingReport], type[BaseModel], Any]] = {
    "reward": (train_reward, Preference, RewardSettings),
    "sft": (train_sft, Example, SftSettings),
    "dpo": (train_dpo, Preference, DpoSettings),
    "pretrain": (train_text, Document, PretrainSettings),
}


def main(path: str) -> int:
    """Train; the exit status, 1 where an error was written."""
    signal.signal(signal.SIGTERM, ending.handle)
    order = Order.model_validate_json(Path(path).read_text())
    train, row_kind, settings_kind = TRAININGS[order.kind]
    job = Job(
        work=order.work,
        resources=order.resources,
        precision=order.precision,
        name=order.name,
        shared=order.shared,
        tracked=order.tracked,
        template=order.template,
        progress=lambda done, total: _tell(order, done, total),
    )
    try:
        PartialState(cpu=on_cpu(job))
        wanted = order.resources.processes * order.resources.machines
        if num_ranks() != wanted:
            raise StepFailed(f"accelerate started {num_ranks()} of {wanted} processes")
        settings: TrainingSettings = parse(settings_kind, order.settings, order.kind)
        rows = load_rows(order.folder / ROWS, row_kind)
        report = train(order.start, rows, order.out, settings, job)
        if is_main():
            answer = {"metrics": report.metrics, "dropped": report.dropped}
            write_json(order.folder / REPORT, answer)
        leave()
    except PosttrainError as error:
        traceback.print_exc()
        place = order.folder / ERROR.format(rank=os.environ.get("RANK", "0"))
        write_json(place, {"kind": type(error).__name__, "message": str(error)})
        return 1
    return 0


def _tell(order: Order, done: int, total: int) -> None:
    if is_main():
        partial = order.folder / f"{PROGRESS}.tmp"
        partial.write_text(json.dumps([done, total]))
        partial.replace(order.folder / PROGRESS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
