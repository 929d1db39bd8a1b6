"""Direct preference optimisation with the paper's two changes (section 4.1.4), on TRL.

Header and termination tokens are left out of the DPO term of both responses, and a negative
log-likelihood of the chosen response, with every one of its tokens, is added. TRL has one mask
for both terms and takes the likelihood's mean over a micro-batch's tokens, so the loss is ours.
Shapes: B pairs, whose dialogs 0..B-1 are chosen and B..2B-1 rejected, packed into R rows of T
tokens.

    train_dpo(sft_model, preferences, out, DpoSettings(beta=0.1), job)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from posttrain.errors import GuardFailed
from posttrain.likelihood import IGNORED
from posttrain.models.chat import load_tokenizer
from posttrain.models.files import context_length
from posttrain.rows import Preference
from posttrain.settings.training import DpoSettings
from posttrain.training.arguments import lora_config, trainer_arguments
from posttrain.training.checkpoints import prepare_work
from posttrain.training.job import Job, TrainingReport
from posttrain.training.memory import memory_advice
from posttrain.training.mixing import mixed
from posttrain.training.packing import packed
from posttrain.training.ranks import from_all_ranks, sum_over_ranks
from posttrain.training.references import LogProbs, References
from posttrain.training.running import (
    NUM_LAST_STEPS,
    History,
    NamingRows,
    OurTrainer,
    identity_of,
    own_process_state,
    publish,
    report,
    run,
)
from posttrain.training.tokens import TokenRow, dpo_tokens, in_memory

Batch = dict[str, torch.Tensor]
REFERENCE_COLUMNS = ("reference_chosen", "reference_rejected")


@dataclass(frozen=True)
class Collator:
    """Packs the dialogs of pairs, chosen ones before rejected ones."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """What a forward pass takes, and beside it:

        `target`, `dpo` [R, T]: marks of the two terms; `places` [2B, T-1]: where the tokens of each
        dialog but its first stand among the R (T-1) tokens but each row's first, padded with
        R (T-1); references [B], if rows have them.
        """
        sides = [
            {"input_ids": row[f"{side}_ids"], **{n: row[f"{side}_{n}"] for n in ("target", "dpo")}}
            for side in ("chosen", "rejected")
            for row in rows
        ]
        batch = packed(sides, {"input_ids": self.pad_token_id, "target": 0, "dpo": 0})
        numbers, positions = batch.pop("dialogs")[:, 1:], batch["position_ids"][:, 1:]
        follows = (numbers >= 0) & (positions > 0)
        places = torch.full((len(sides), numbers.shape[1]), numbers.numel())
        flat = torch.arange(numbers.numel()).view_as(numbers)
        places[numbers[follows], positions[follows] - 1] = flat[follows]
        batch["places"] = places
        for name in REFERENCE_COLUMNS:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


class Dpo(OurTrainer, DPOTrainer):
    """TRL's trainer with the paper's loss; the reference is the model it was loaded with."""

    # The Trainer's own division by the number of parts is wrong once the last part is smaller.
    loss_is_scaled_for_ga = True
    nll_weight: float = 0.0

    def __init__(self, *args: Any, references: References, **kwargs: Any) -> None:
        """As TRL's, which computes the reference at once where it is not known."""
        self._references = references
        super().__init__(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: Sequence[Batch], device: torch.device) -> int:
        """Pairs of the whole batch, over its parts and all processes."""
        return sum_over_ranks(sum(len(batch["places"]) for batch in batch_samples) // 2)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Log-probabilities of both responses under the model before its first update.

        TRL's own are cached under a key that knows nothing of the masks.
        """
        rows = [dict(row) for row in dataset]
        values = self._references.load()
        if values is None:
            values = self._compute_references(rows, batch_size)
            self._references.save(values)
        for row, both in zip(rows, values, strict=True):
            row |= dict(zip(REFERENCE_COLUMNS, both, strict=True))
        return in_memory(rows)

    def _compute_references(self, rows: Sequence[Mapping[str, Any]], batch_size: int) -> LogProbs:
        longest_first = sorted(
            range(len(rows)),
            key=lambda i: -max(len(rows[i]["chosen_ids"]), len(rows[i]["rejected_ids"])),
        )
        model = cast(torch.nn.Module, self.model)
        training = model.training
        model.eval()
        # Each process has a share of them, and tells the others.
        own = longest_first[self.accelerator.process_index :: self.accelerator.num_processes]
        found: list[tuple[int, float, float]] = []
        for start in range(0, len(own), batch_size):
            part = own[start : start + batch_size]
            batch = self._prepare_inputs(self.data_collator([dict(rows[i]) for i in part]))
            with torch.no_grad(), self.accelerator.autocast():
                sums = _by_dialog(self.log_probs(model, batch) * batch["dpo"][:, 1:], batch)
            chosen, rejected = sums.float().chunk(2)
            found += zip(part, chosen.tolist(), rejected.tolist(), strict=True)
        model.train(training)
        return [(better, worse) for _, better, worse in sorted(from_all_ranks(found))]

    def log_probs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Log-probability of each token but the first [R, T-1]; 0 where it is no target."""
        labels = batch["input_ids"].masked_fill(batch["target"] == 0, IGNORED)
        outputs = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            labels=labels,
            use_cache=False,
            fused_lm_head=True,
        )
        log_probs: torch.Tensor = outputs.log_probs
        return log_probs

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum over pairs of DPO + weight * NLL, divided by the pairs of the whole batch."""
        logps = self.log_probs(model, inputs)
        chosen, rejected = _by_dialog(logps * inputs["dpo"][:, 1:], inputs).chunk(2)
        chosen_ratio = chosen - inputs["reference_chosen"]
        rejected_ratio = rejected - inputs["reference_rejected"]
        dpo_loss = -logsigmoid(self.beta * (chosen_ratio - rejected_ratio))
        sums, counts = (_by_dialog(one, inputs) for one in (logps, inputs["target"][:, 1:]))
        nll = -(sums / counts).chunk(2)[0]
        # Processes average their gradients, and this is a share of a sum.
        scale = self.accelerator.num_processes / num_items_in_batch if num_items_in_batch else None
        loss = (dpo_loss + self.nll_weight * nll).sum() * (scale or 1 / len(chosen))
        self._record(
            {
                "loss/dpo": dpo_loss,
                "loss/nll": nll,
                "logps/chosen": chosen,
                "logps/rejected": rejected,
                "rewards/chosen": self.beta * chosen_ratio,
                "rewards/rejected": self.beta * rejected_ratio,
                "rewards/margins": self.beta * (chosen_ratio - rejected_ratio),
                "rewards/accuracies": (chosen_ratio > rejected_ratio).float(),
            }
        )
        self._total_train_tokens += sum_over_ranks(_num_tokens(inputs))
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def _record(self, values_B: Mapping[str, torch.Tensor]) -> None:
        for name, values in values_B.items():
            self._metrics["train"][name].extend(from_all_ranks(values.detach().float().tolist()))


def _by_dialog(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sums [2B] over each dialog of what tokens but the first of a row have [R, T-1]."""
    with_padding = torch.cat([values.flatten(), values.new_zeros(1)])
    return with_padding[batch["places"]].sum(1)


def _num_tokens(batch: Batch) -> int:
    """Without padding."""
    places, first_of_each = batch["places"], len(batch["places"])
    return int((places < batch["target"][:, 1:].numel()).sum()) + first_of_each


def dpo_trainer(
    policy: Path,
    tokenizer: PreTrainedTokenizerBase,
    kept: Sequence[TokenRow],
    settings: DpoSettings,
    job: Job,
) -> Dpo:
    """A trainer whose policy and reference both come from the folder `policy`."""
    assert isinstance(tokenizer.pad_token_id, int)
    longer = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in kept]
    arguments = trainer_arguments(settings, job, longer)
    batch_size = arguments["per_device_train_batch_size"]
    trainer = Dpo(
        model=str(policy),
        args=DPOConfig(**arguments, beta=settings.beta, precompute_ref_log_probs=True),
        references=References.of(policy, kept, job, batch_size),
        data_collator=NamingRows(Collator(tokenizer.pad_token_id)),
        train_dataset=in_memory(kept),
        processing_class=tokenizer,
        peft_config=lora_config(settings, "CAUSAL_LM"),
    )
    trainer.nll_weight = settings.nll_weight
    return trainer


def train_dpo(
    policy: Path, rows: Sequence[Preference], out: Path, settings: DpoSettings, job: Job
) -> TrainingReport:
    """Optimise (edited or chosen) over the last of each ranking; write to `out` as bfloat16.

    Raises:
        BadInput: no row can be trained on, or the policy is no model folder.
        GuardFailed: the chosen responses become too unlikely, or the loss no finite number.
        StepFailed: memory ran out.
    """
    with own_process_state(job), memory_advice("dpo", settings, job):
        return _train(policy, rows, out, settings, job)


def _train(
    policy: Path, rows: Sequence[Preference], out: Path, settings: DpoSettings, job: Job
) -> TrainingReport:
    tokenizer = load_tokenizer(policy, job.template)
    limit = min(settings.max_length, context_length(policy))
    seen, left_out = mixed(rows, settings)
    kept, dropped = dpo_tokens(tokenizer, seen, limit, settings.mask_format_tokens)
    checkpoint = prepare_work(job.work, identity_of("dpo", policy, settings, job, kept))
    trainer = dpo_trainer(policy, tokenizer, kept, settings, job)
    ids = [row.id for row in seen]
    history = run(trainer, job, checkpoint, ids, partial(check_chosen, settings))
    publish(trainer, tokenizer, out)
    return report(history, len(kept), left_out + dropped)


def check_chosen(settings: DpoSettings, history: History) -> None:
    """Guard against a policy that flees from the chosen responses too.

    Raises:
        GuardFailed: over the last steps the mean log-probability of chosen responses lies more
            than `max_chosen_drop` nats below the reference's.
    """
    last = history[-NUM_LAST_STEPS:]
    drop = -sum(entry["rewards/chosen"] for entry in last) / len(last) / settings.beta
    if drop > settings.max_chosen_drop:
        raise GuardFailed(
            f"at step {last[-1]['step']} chosen responses are {drop:.1f} nats less likely than "
            f"under the reference (dpo.max_chosen_drop is {settings.max_chosen_drop}); lower "
            "dpo.learning_rate or raise dpo.nll_weight"
        )
