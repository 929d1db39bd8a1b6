"""The reward model: Llama 2's pairwise loss without margin (section 4.1.2), on TRL.

Knows TRL's RewardTrainer. A ranking of K responses is a row with K(K-1)/2 pairs; how its tokens
are laid out is `posttrain.training.rankings`'s.

    train_reward(base, preferences, out, RewardSettings(), job)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from posttrain.errors import BadInput, GuardFailed
from posttrain.models.chat import load_tokenizer
from posttrain.models.files import context_length, hidden_size, read_tensors
from posttrain.rows import Preference
from posttrain.settings.training import PREFIX_KEEPS_KEYS, RewardSettings
from posttrain.training.arguments import lora_config, trainer_arguments
from posttrain.training.checkpoints import prepare_work
from posttrain.training.job import Job, TrainingReport
from posttrain.training.memory import memory_advice
from posttrain.training.mixing import mixed
from posttrain.training.rankings import Batch, Collator, Layout, num_tokens, pick_layout
from posttrain.training.ranks import from_all_ranks, sum_over_ranks
from posttrain.training.running import (
    NamingRows,
    OurTrainer,
    identity_of,
    own_process_state,
    publish,
    report,
    run,
)
from posttrain.training.shared_prompt import read_at_ends
from posttrain.training.tokens import TokenRow, in_memory, reward_tokens

HEAD = "score.weight"
MAX_GAP = 1e-3
"""Far more than rounding in float32, far less than what a wrong mask does to a score."""


class Reward(OurTrainer, RewardTrainer):
    """TRL's, with rankings in place of pairs and the mean over all pairs of the whole batch."""

    loss_is_scaled_for_ga = True

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Mapping[str, torch.Tensor]], device: torch.device
    ) -> int:
        """Pairs of the whole batch, over its parts and all processes."""
        return sum_over_ranks(sum(len(batch["better"]) for batch in batch_samples))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum over pairs of -log sigmoid(difference), divided by the pairs of the whole batch."""
        inputs = dict(inputs)
        better, worse, tokens = (inputs.pop(name) for name in ("better", "worse", "num_tokens"))
        scores: torch.Tensor = model(**inputs)
        gaps = scores[better] - scores[worse]
        self._record(scores, gaps, int(tokens))
        losses: torch.Tensor = -logsigmoid(gaps)
        if num_items_in_batch is None:
            return losses.mean()
        # Processes average their gradients, and this is a share of a sum.
        share: torch.Tensor = losses.sum() * self.accelerator.num_processes / num_items_in_batch
        return share

    def _record(self, scores: torch.Tensor, gaps: torch.Tensor, tokens: int) -> None:
        """TRL's figures under its names; means are over pairs and responses, not over parts."""
        own = (scores.detach().float().tolist(), gaps.detach().float().tolist(), tokens)
        parts = from_all_ranks([own])
        rewards = [score for part in parts for score in part[0]]
        margins = [gap for part in parts for gap in part[1]]
        self._total_train_tokens += sum(part[2] for part in parts)
        metrics = self._metrics["train"]
        metrics["min_reward"].append(min(rewards))
        metrics["mean_reward"].extend(rewards)
        metrics["max_reward"].append(max(rewards))
        metrics["accuracy"].extend(float(margin > 0) for margin in margins)
        metrics["margin"].extend(margins)
        metrics["num_tokens"] = [self._total_train_tokens]


class _TellEpoch(TrainerCallback):
    """Tells the collator which epoch runs, after a resume in the middle of one too."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._collator.epoch = math.floor(state.epoch or 0)


def reward_trainer(
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    kept: Sequence[TokenRow],
    settings: RewardSettings,
    job: Job,
) -> Reward:
    """A trainer on the rows of `reward_tokens`; the head's first weights come from the seed.

    Raises:
        BadInput: the layout cannot be combined with gradient checkpointing.
        GuardFailed: the model does not score a response in this layout as it does alone.
    """
    assert isinstance(tokenizer.pad_token_id, int)
    arguments = trainer_arguments(settings, job, list(map(num_tokens, kept)))
    layout = _layout(base, kept, settings, job, arguments["per_device_train_batch_size"])
    collator = Collator(layout, tokenizer.pad_token_id, settings.isolate, settings.data_seed)
    trainer = Reward(
        model=str(base),
        args=RewardConfig(**arguments),
        data_collator=NamingRows(collator),
        train_dataset=in_memory(kept),
        processing_class=tokenizer,
        callbacks=[_TellEpoch(collator)],
        peft_config=lora_config(settings, "SEQ_CLS"),
    )
    _read_at_ends(trainer, collator, max(kept, key=num_tokens))
    return trainer


def train_reward(
    base: Path, rows: Sequence[Preference], out: Path, settings: RewardSettings, job: Job
) -> TrainingReport:
    """Train a scalar head on `base` to rank responses; write the model to `out` as bfloat16.

    The head's first weights are drawn from `settings.seed`.

    Raises:
        BadInput: no row can be trained on, the base is no model folder or has a head of several
            labels, or the layout cannot be combined with gradient checkpointing.
        GuardFailed: the loss stops being a finite number, or the model does not score a response
            in this layout as it does alone.
        StepFailed: memory ran out.
    """
    with own_process_state(job), memory_advice("reward", settings, job):
        return _train(base, rows, out, settings, job)


def _train(
    base: Path, rows: Sequence[Preference], out: Path, settings: RewardSettings, job: Job
) -> TrainingReport:
    _check_head(base)
    tokenizer = load_tokenizer(base, job.template)
    limit = min(settings.max_length, context_length(base))
    seen, left_out = mixed(rows, settings)
    kept, dropped = reward_tokens(tokenizer, seen, limit, settings.isolate)
    checkpoint = prepare_work(job.work, identity_of("reward", base, settings, job, kept))
    trainer = reward_trainer(base, tokenizer, kept, settings, job)
    ids = [row.id for row in seen]
    history = run(trainer, job, checkpoint, ids)
    publish(trainer, tokenizer, out)
    return report(history, len(kept), left_out + dropped)


def _layout(
    base: Path,
    kept: Sequence[TokenRow],
    settings: RewardSettings,
    job: Job,
    rankings_per_pass: int,
) -> Layout:
    if settings.layout == "prefix" and job.resources.gradient_checkpointing:
        raise BadInput(PREFIX_KEEPS_KEYS)
    if settings.layout != "auto":
        return settings.layout
    if not settings.isolate:
        return "packed"
    return pick_layout(kept, hidden_size(base), rankings_per_pass)


def _read_at_ends(trainer: Reward, collator: Collator, row: TokenRow) -> None:
    """Give the model its forward pass, and check one ranking against the model's own.

    Windows of attention, positions that are not given, or any other thing that a shared prompt
    does not agree with would spoil the scores without a word.
    """
    model: Any = trainer.model
    apart = trainer._prepare_inputs(replace(collator, layout="rows")([row]))
    model.eval()
    with torch.no_grad():
        names = ("input_ids", "attention_mask")
        expected = model(**{name: apart[name] for name in names}, use_cache=False).logits[:, 0]
        read_at_ends(model, packed=collator.layout == "packed" and collator.isolate)
        found = model(**trainer._prepare_inputs(collator([row])))
    model.train()
    gap = (found - expected).abs().max().item()
    if collator.isolate and gap > MAX_GAP * (1 + expected.abs().max().item()):
        raise GuardFailed(
            f"layout {collator.layout}: responses score {found.tolist()}, alone "
            f"{expected.tolist()}; this model's prompts cannot be shared, set reward.layout: rows"
        )


def _check_head(base: Path) -> None:
    head = read_tensors(base).get(HEAD)
    if head is not None and head.shape[0] != 1:
        raise BadInput(
            f"{base}: expected a pre-trained model or a reward model with a head of one label; "
            f"its head has {head.shape[0]}"
        )
