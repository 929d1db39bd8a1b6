"""Supervised fine-tuning: cross-entropy on assistant tokens (section 4.1.3), on TRL.

Knows TRL's SFTTrainer. Knows nothing of where rows come from.

    train_sft(base, examples, out, SftSettings(learning_rate=1e-5), job)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.models.chat import load_tokenizer
from posttrain.models.files import context_length
from posttrain.rows import Example
from posttrain.settings.training import SftSettings, TrainingSettings
from posttrain.training.arguments import lora_config, trainer_arguments
from posttrain.training.checkpoints import prepare_work
from posttrain.training.job import Job, TrainingReport
from posttrain.training.memory import memory_advice
from posttrain.training.mixing import mixed
from posttrain.training.packing import PackedBatches
from posttrain.training.ranks import sum_over_ranks
from posttrain.training.running import (
    Collate,
    NamingRows,
    OurTrainer,
    identity_of,
    own_process_state,
    publish,
    report,
    run,
)
from posttrain.training.tokens import TokenRow, in_memory, sft_tokens


class Sft(OurTrainer, SFTTrainer):
    """TRL's own, silent, on packed rows."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss; it would count the tokens of one packed row alone."""
        before = self._total_train_tokens
        loss = super().compute_loss(  # type: ignore[no-untyped-call]
            model, inputs, return_outputs, num_items_in_batch
        )
        positions = inputs["position_ids"]
        # Padding has position 0, and each dialog one token of position 0 and one of position 1.
        tokens = sum_over_ranks(int((positions > 0).sum() + (positions == 1).sum()))
        self._total_train_tokens = before + tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss


def sft_trainer(
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    kept: Sequence[TokenRow],
    collate: Collate,
    settings: TrainingSettings,
    job: Job,
) -> Sft:
    """A trainer on rows that `collate` lays out as `input_ids`, `labels` and `position_ids`."""
    return Sft(
        model=str(base),
        args=SFTConfig(
            **trainer_arguments(settings, job, [len(row["input_ids"]) for row in kept]),
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        data_collator=NamingRows(collate),
        train_dataset=in_memory(kept),
        processing_class=tokenizer,
        peft_config=lora_config(settings, "CAUSAL_LM"),
    )


def train_sft(
    base: Path, rows: Sequence[Example], out: Path, settings: SftSettings, job: Job
) -> TrainingReport:
    """Fine-tune `base` on dialogs and write the model to `out` as bfloat16.

    The loss is the mean over all target tokens of a batch, however it is split.

    Raises:
        BadInput: no row can be trained on, or the base is no model folder.
        GuardFailed: the loss stops being a finite number.
        StepFailed: memory ran out.
    """
    with own_process_state(job), memory_advice("sft", settings, job):
        return _train(base, rows, out, settings, job)


def _train(
    base: Path, rows: Sequence[Example], out: Path, settings: SftSettings, job: Job
) -> TrainingReport:
    tokenizer = load_tokenizer(base, job.template)
    limit = min(settings.max_length, context_length(base))
    seen, left_out = mixed(rows, settings)
    kept, dropped = sft_tokens(tokenizer, seen, limit)
    checkpoint = prepare_work(job.work, identity_of("sft", base, settings, job, kept))
    collate = PackedBatches(int(tokenizer.pad_token_id))
    trainer = sft_trainer(base, tokenizer, kept, collate, settings, job)
    ids = [row.id for row in seen]
    history = run(trainer, job, checkpoint, ids)
    publish(trainer, tokenizer, out)
    return report(history, len(kept), left_out + dropped)
