"""The circumstances of a run: devices, processes, disk; nothing here makes a finished step stale.

Resources(processes=8, sharding="fsdp")
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from posttrain.settings.base import Settings
from posttrain.settings.engines import SandboxLimits

Share = Annotated[float, Field(ge=0, le=1)]


class Resources(Settings):
    """Circumstances: nothing here makes a finished step stale."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast for training; `auto` asks the machine once a run and remembers the answer."""
    threads: Annotated[int, Field(ge=1)] = 1
    parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Steps that may run side by side where none needs the other; `auto` is one on a machine with
    an accelerator, else one a core (for `threads` cores each) up to four."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows a device takes at a time; None takes the whole batch."""
    gradient_checkpointing: bool = False
    launcher: Literal["local", "slurm"] = "local"
    """Who starts the processes of a training: this machine by itself, or srun on several."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Of a training, on each machine: one a GPU. `batch_size` is that of all of them together."""
    machines: Annotated[int, Field(ge=1)] = 1
    sharding: Literal["none", "fsdp", "zero3"] = "none"
    """Of weights, gradients and optimizer states over the processes: FSDP2, or DeepSpeed ZeRO-3
    (which needs deepspeed)."""
    srun: tuple[str, ...] = ()
    """Further options of srun, e.g. `[--gres=gpu:8, --cpus-per-task=96]`."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Optimizer steps between checkpoints to resume from."""
    report_to: tuple[str, ...] = ()
    """Trackers that trainings report to beside metrics.jsonl, by the names that transformers has
    for them: tensorboard, wandb, mlflow, trackio…; they need their own packages."""
    worker: Literal["auto", "shared", "step"] = "auto"
    """One process for each heavy step, or one shared by a round's steps; `auto` shares only on a
    machine without an accelerator."""
    grace_seconds: Annotated[float, Field(ge=0)] = 60.0
    """What trainings have to write a checkpoint when SIGTERM asks for the machine."""
    sandbox_workers: Annotated[int, Field(ge=1)] = 4
    sandbox: SandboxLimits = SandboxLimits()
    """What one model-written program may use."""
    min_free_gib: Annotated[float, Field(ge=0)] = 1.0
    """Disk space that must stay free beside what a step is expected to write."""
    reject_share: Share = 0.05
    """Share of malformed input rows past which a step stops."""

    @model_validator(mode="after")
    def _processes_make_sense(self) -> Self:
        if self.machines > 1 and self.launcher == "local":
            raise ValueError("resources.machines: several need launcher: slurm")
        if self.sharding != "none" and self.machines * self.processes == 1:
            raise ValueError("resources.sharding: one process has nobody to share with")
        return self
