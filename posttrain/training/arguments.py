"""Our settings as the arguments of a TRL trainer.

Knows the names TRL and transformers use; runs nothing.

    SFTConfig(**trainer_arguments(settings, job))
"""

import math
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from transformers.integrations.integration_utils import get_available_reporting_integrations

from posttrain.errors import BadInput
from posttrain.models.devices import pick_device
from posttrain.rows import stable_seed
from posttrain.settings.training import TrainingSettings
from posttrain.training.job import Job
from posttrain.training.ranks import num_ranks

MAX_PLAIN_ATTENTION = 160
"""Longest row, in tokens, for attention that is not fused."""

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def on_cpu(job: Job) -> bool:
    """Whether the training runs on the CPU.

    Raises:
        BadInput: CUDA is wanted and torch sees none.
    """
    return pick_device(job.resources.device) == "cpu"


def micro_batch(batch_size: int, limit: int | None) -> int:
    """The largest divisor of the batch that is within the limit, so that all parts are equal."""
    if limit is None or limit >= batch_size:
        return batch_size
    return max(size for size in range(1, limit + 1) if batch_size % size == 0)


def own_share(batch_size: int) -> int:
    """Rows of a batch that fall to one of the training's processes.

    Raises:
        BadInput: the batch cannot be shared evenly.
    """
    if batch_size % num_ranks():
        raise BadInput(
            f"batch_size {batch_size} cannot be shared by {num_ranks()} processes "
            "(resources.processes x resources.machines); make it a multiple"
        )
    return batch_size // num_ranks()


def steps_limit(settings: TrainingSettings, num_rows: int) -> int:
    """What transformers takes as `max_steps`: -1 unless the settings' limit ends the epochs early.

    transformers has its own `max_steps` replace the number of epochs, also where it is larger.
    """
    steps = math.ceil(settings.epochs * math.ceil(num_rows / settings.batch_size))
    limit = settings.max_steps
    return limit if limit is not None and limit < steps else -1


def trainer_arguments(
    settings: TrainingSettings, job: Job, lengths: Sequence[int]
) -> dict[str, Any]:
    """Keyword arguments that SFTConfig, RewardConfig and DPOConfig share.

    `lengths` are the tokens of each dialog, ranking or (the longer side of a) pair of one epoch.

    Weights are loaded and kept as float32; at DPO's learning rates most bfloat16 weights would
    never move.
    """
    cpu = on_cpu(job)
    own = own_share(settings.batch_size)
    micro = micro_batch(own, job.resources.micro_batch_size)
    return {
        "output_dir": str(job.work),
        "model_init_kwargs": _loading(settings, job, lengths),
        "trust_remote_code": False,
        "use_cpu": cpu,
        "bf16": job.precision == "bfloat16",
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": own // micro,
        # Under FSDP the launcher's own is used, which does not recompute what is gathered.
        "gradient_checkpointing": job.resources.gradient_checkpointing
        and job.resources.sharding != "fsdp",
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": SCHEDULES[settings.schedule],
        "warmup_steps": settings.warmup_share,
        "num_train_epochs": settings.epochs,
        "max_steps": steps_limit(settings, len(lengths)),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        # The sampler adds the epoch to its seed: hashing keeps neighbouring seeds' orders apart.
        "data_seed": stable_seed("order of rows", settings.data_seed),
        # Rows are filtered before, and counted; TRL would cut or drop them without a word.
        "max_length": None,
        "pad_to_multiple_of": None,
        "remove_unused_columns": False,
        "dataloader_pin_memory": not cpu,
        "logging_steps": 1,
        # Otherwise a NaN loss is replaced by the mean of the losses before it.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": job.resources.checkpoint_every,
        "save_total_limit": 1,
        "report_to": _trackers(job),
        "run_name": job.name,
        "disable_tqdm": True,
    }


def _trackers(job: Job) -> list[str]:
    """What reports go to beside metrics.jsonl.

    Raises:
        BadInput: a tracker's package is not there.
    """
    there = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in job.resources.report_to:
        if name not in there:
            raise BadInput(
                f"resources.report_to: {name} is unknown or its package is not installed; "
                f"installed are {sorted(there) or 'none'}"
            )
    return list(job.resources.report_to)


def _loading(settings: TrainingSettings, job: Job, lengths: Sequence[int]) -> dict[str, Any]:
    """How TRL loads the model."""
    loading = {"dtype": "float32", "local_files_only": True, "use_safetensors": True}
    # Rows are as long as the longest dialog of a batch: that of the middle one of many batches.
    usual = sorted(lengths)[-max(1, len(lengths) // settings.batch_size)]
    # The backward pass of torch's fused attention takes half of a bfloat16 step on a CPU; the plain
    # one is up to twice as fast there on short rows, and half as fast on long ones.
    if on_cpu(job) and job.precision == "bfloat16" and usual <= MAX_PLAIN_ATTENTION:
        return {**loading, "attn_implementation": "eager"}
    return loading


def lora_config(settings: TrainingSettings, task: str) -> LoraConfig | None:
    """The adapters of a training, or None for full fine-tuning.

    Args:
        settings: The training's settings.
        task: `CAUSAL_LM`, or `SEQ_CLS`, which trains the score head in full.
    """
    lora = settings.lora
    if lora is None:
        return None
    modules = list(lora.target_modules)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=lora.dropout,
        target_modules=modules[0] if modules == ["all-linear"] else modules,
        task_type=task,
    )
