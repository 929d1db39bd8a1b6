"""The job of a training stage, from the circumstances its step runs in.

The bridge between steps and trainers: trainers know no step, stages no trainer's files.

    train_sft(base, rows, out.path / "model", settings, training_job(inputs, out))
"""

import fcntl
from typing import cast

from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_json, write_json
from posttrain.training.job import Job, Precision, TrainingReport
from posttrain.training.order import ACCELERATE, LAUNCH
from posttrain.training.precision import choose_precision


def training_job(inputs: Inputs, out: Output) -> Job:
    """Where a training works, with which precision, and who is told of its progress."""
    work = out.path / WORK
    work.mkdir(parents=True, exist_ok=True)
    run = inputs.machine.parent
    address = out.path.relative_to(run).with_suffix("")
    return Job(
        work=work,
        resources=inputs.resources,
        precision=_precision(inputs),
        name=f"{run.name}/{address}",
        shared=run / "shared",
        tracked=run / "tracked" / address,
        template=inputs.paths.get("template"),
        progress=out.progress,
    )


def keep_books(report: TrainingReport, rows_in: int, out: Output) -> None:
    """Publish a training's curve, numbers and dropped rows, and how accelerate was asked."""
    for row_id, reason in report.dropped:
        out.drop(row_id, reason)
    out.part("train", rows_in, rows_in - len(report.dropped))
    out.metrics(**report.metrics)
    (out.path / WORK / "metrics.jsonl").replace(out.path / "metrics.jsonl")
    launched = out.path / WORK / LAUNCH / ACCELERATE
    if launched.is_file():
        launched.replace(out.path / ACCELERATE)


def _precision(inputs: Inputs) -> Precision:
    """Asked of the machine once a run: neither a resumed training nor one beside may change it."""
    wanted = inputs.resources.precision
    if wanted != "auto":
        return wanted
    with inputs.machine.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not inputs.machine.is_file():
            chosen = choose_precision(inputs.resources.device)
            write_json(inputs.machine, {"precision": chosen})
    return cast(Precision, read_json(inputs.machine)["precision"])
