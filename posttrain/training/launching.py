"""Starts a training: here, or as several processes on one machine or many.

Processes are started by accelerate, machines by Slurm's srun; every process does what a training
by itself does. Answers come as files, so a launcher's exit status decides nothing.

    run_training(train_sft, "sft", base, rows, out.path / "model", settings.sft, job)
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from posttrain.errors import BadInput, Preempted, StepFailed, from_name
from posttrain.settings.resources import Resources
from posttrain.settings.training import TrainingSettings
from posttrain.steps.ending import patient
from posttrain.tables import read_json, write_rows
from posttrain.training.arguments import on_cpu
from posttrain.training.job import Job, TrainingReport
from posttrain.training.order import ACCELERATE, ORDER, PROGRESS, REPORT, ROWS, Kind, Order

SettingsT = TypeVar("SettingsT", bound=TrainingSettings)
RowT = TypeVar("RowT", bound=BaseModel)
POLL_SECONDS = 0.2
LAST_LINES = 60


def run_training(
    train: Callable[[Path, Sequence[RowT], Path, SettingsT, Job], TrainingReport],
    kind: Kind,
    start: Path,
    rows: Sequence[RowT],
    out: Path,
    settings: SettingsT,
    job: Job,
) -> TrainingReport:
    """Train in this process, or in as many as the resources name.

    Raises:
        BadInput, GuardFailed: see the training.
        StepFailed: a process ended without an answer.
        Preempted: SIGTERM came; a checkpoint is written.
    """
    resources = job.resources
    if resources.processes * resources.machines == 1:
        return train(start, rows, out, settings, job)
    order = Order(
        kind=kind,
        start=start,
        out=out,
        settings=settings.model_dump(mode="json"),
        work=job.work,
        resources=resources,
        precision=job.precision,
        name=job.name,
        shared=job.shared,
        tracked=job.tracked,
        template=job.template,
        head=_head(resources),
        port=_port(resources),
    )
    shutil.rmtree(order.folder, ignore_errors=True)
    order.folder.mkdir(parents=True)
    write_rows(order.folder / ROWS, rows)
    (order.folder / ORDER).write_text(order.model_dump_json(indent=1))
    config = accelerate_config(resources, on_cpu(job), order.head, order.port)
    (order.folder / ACCELERATE).write_text(yaml.safe_dump(config, sort_keys=False))
    log = order.folder / "log.txt"
    with patient() as asked, log.open("wb") as stream:
        process = subprocess.Popen(
            command(order),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, order, job, asked)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return _answer(order, log)


def command(order: Order) -> list[str]:
    """What is run here: a node's process by itself, or one on each machine by srun."""
    node = [sys.executable, "-P", "-m", "posttrain.training.node", str(order.folder / ORDER)]
    resources = order.resources
    if resources.launcher == "local":
        return node
    machines = str(resources.machines)
    return [
        "srun",
        f"--nodes={machines}",
        f"--ntasks={machines}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        *resources.srun,
        *node,
    ]


def accelerate_config(resources: Resources, cpu: bool, head: str, port: int) -> Mapping[str, Any]:
    """What `accelerate launch` is given; each machine adds its rank.

    Raises:
        BadInput: weights cannot be sharded on CPUs.
    """
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        # accelerate starts one process alone of what it calls MULTI_CPU.
        "distributed_type": "MULTI_GPU",
        "num_machines": resources.machines,
        "num_processes": resources.machines * resources.processes,
        "main_process_ip": head,
        "main_process_port": port,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": cpu,
        "mixed_precision": "no",
        "main_training_function": "main",
        "downcast_bf16": "no",
        "debug": False,
    }
    if resources.sharding == "none":
        return config
    if cpu:
        raise BadInput(
            f"resources.sharding: {resources.sharding} needs GPUs; training runs on the CPU here"
        )
    if resources.sharding == "fsdp":
        return {
            **config,
            "distributed_type": "FSDP",
            "fsdp_config": {
                "fsdp_version": 2,
                "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "fsdp_reshard_after_forward": True,
                "fsdp_cpu_ram_efficient_loading": True,
                "fsdp_state_dict_type": "FULL_STATE_DICT",
                "fsdp_activation_checkpointing": resources.gradient_checkpointing,
            },
        }
    return {
        **config,
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "zero_stage": 3,
            "zero3_init_flag": True,
            "zero3_save_16bit_model": True,
            "gradient_accumulation_steps": "auto",
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
        },
    }


def _wait(
    process: "subprocess.Popen[bytes]", order: Order, job: Job, asked: Callable[[], bool]
) -> None:
    """Until the processes end; a wish to end is passed on once."""
    passed_on = False
    told: object = None
    while process.poll() is None:
        if asked() and not passed_on:
            passed_on = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        progress = order.folder / PROGRESS
        with contextlib.suppress(OSError, ValueError):
            done, total = json.loads(progress.read_text())
            if (done, total) != told:
                told = (done, total)
                job.progress(done, total)
        time.sleep(POLL_SECONDS)


def _answer(order: Order, log: Path) -> TrainingReport:
    """The report of the main process.

    Raises:
        PosttrainError: what the first process that failed has raised.
        StepFailed: neither a report nor an error is there.
    """
    for path in sorted(order.folder.glob("error-*.json")):
        error = read_json(path)
        if error["kind"] != Preempted.__name__ or not (order.folder / REPORT).is_file():
            raise from_name(str(error["kind"]), str(error["message"]))
    if (order.folder / REPORT).is_file():
        report = read_json(order.folder / REPORT)
        dropped = [(str(row_id), str(reason)) for row_id, reason in report["dropped"]]
        return TrainingReport(report["metrics"], dropped)
    tail = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    lines = ["its processes ended without an answer:", *(f"  | {line}" for line in tail)]
    raise StepFailed("\n".join(lines))


def _head(resources: Resources) -> str:
    """The first machine of the allocation."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if resources.launcher == "local" or resources.machines == 1:
        return "127.0.0.1"
    if nodes is None:
        raise BadInput(
            "resources.launcher: slurm needs an allocation; run this inside sbatch or salloc "
            "(SLURM_JOB_NODELIST is not set)"
        )
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise StepFailed(f"scontrol cannot name the machines of {nodes}: {error}") from error
    return listed.stdout.split()[0]


def _port(resources: Resources) -> int:
    """A free port here; on several machines one that follows from the job, as all must agree."""
    if resources.machines > 1:
        return 20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
