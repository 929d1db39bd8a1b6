"""The reward model: Llama 2's pairwise loss without margin (section 4.1.2), on TRL.

Knows TRL's RewardTrainer. A ranking of K responses is K(K-1)/2 pairs.

    train_reward(base, preferences, out, RewardSettings(), job)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from posttrain.models.chat import load_tokenizer
from posttrain.models.folders import context_length
from posttrain.rows import Preference
from posttrain.settings.training import RewardSettings
from posttrain.training.arguments import lora_config, trainer_arguments
from posttrain.training.checkpoints import prepare_work
from posttrain.training.job import Job, TrainingReport
from posttrain.training.running import (
    PairMean,
    Silent,
    identity_of,
    own_process_state,
    publish,
    report,
    run,
)
from posttrain.training.tokens import in_memory, reward_tokens


class _Reward(Silent, PairMean, RewardTrainer):
    """TRL's own, silent, with the mean taken over the pairs of the whole batch."""

    loss_is_scaled_for_ga = True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's mean over a part of the batch, weighted by the part's size."""
        num_pairs = len(inputs["input_ids"]) // 2
        loss = super().compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        return loss * num_pairs / (num_items_in_batch or num_pairs)


def train_reward(
    base: Path, rows: Sequence[Preference], out: Path, settings: RewardSettings, job: Job
) -> TrainingReport:
    """Train a scalar head on `base` to rank responses; write the model to `out` as bfloat16.

    The head's first weights are drawn from `settings.seed`.

    Raises:
        BadInput: no row can be trained on, or the base is no model folder.
        GuardFailed: the loss stops being a finite number.
    """
    with own_process_state(job):
        return _train(base, rows, out, settings, job)


def _train(
    base: Path, rows: Sequence[Preference], out: Path, settings: RewardSettings, job: Job
) -> TrainingReport:
    tokenizer = load_tokenizer(base, job.template)
    limit = min(settings.max_length, context_length(base))
    kept, dropped = reward_tokens(tokenizer, rows, limit)
    checkpoint = prepare_work(job.work, identity_of("reward", base, settings, job, kept))
    trainer = _Reward(
        model=str(base),
        args=RewardConfig(**trainer_arguments(settings, job, len(kept))),
        train_dataset=in_memory(kept),
        processing_class=tokenizer,
        peft_config=lora_config(settings, "SEQ_CLS"),
    )
    history = run(trainer, job, checkpoint)
    publish(trainer, tokenizer, out)
    return report(history, len(kept), dropped)
