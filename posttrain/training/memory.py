"""Says which setting to lower when a training has no memory left.

Knows how torch reports it, and what a training's memory depends on.

    with memory_advice("sft", settings, job):
        trainer.train()
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from posttrain.errors import StepFailed
from posttrain.settings.training import TrainingSettings
from posttrain.training.arguments import micro_batch, own_share
from posttrain.training.job import Job

CPU_IS_FULL = "DefaultCPUAllocator"
"""In the text of the RuntimeError that torch raises when the system gives it no memory."""


@contextmanager
def memory_advice(kind: str, settings: TrainingSettings, job: Job) -> Iterator[None]:
    """Turn running out of memory into an error that names settings; `kind` is their plan's key.

    Raises:
        StepFailed: memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_IS_FULL in str(error)
        if not full:
            raise
        advice = "; ".join(_advice(kind, settings, job))
        what = str(error).partition("\n")[0]
        raise StepFailed(f"{kind}: no memory left for this training: {advice} ({what})") from error


def _advice(kind: str, settings: TrainingSettings, job: Job) -> Iterator[str]:
    """What may be changed, that which leaves the result as it is before all else."""
    rows = micro_batch(own_share(settings.batch_size), job.resources.micro_batch_size)
    if rows > 1:
        yield f"lower resources.micro_batch_size (now {rows} rows at a time)"
    if not job.resources.gradient_checkpointing:
        yield "set resources.gradient_checkpointing: true"
    if job.resources.sharding == "none":
        yield "set resources.sharding: fsdp, where there are several GPUs"
    yield f"lower {kind}.max_length (now {settings.max_length} tokens)"
    if settings.lora is None:
        yield f"train adapters ({kind}.lora)"
