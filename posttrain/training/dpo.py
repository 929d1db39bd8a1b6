"""Direct preference optimisation with the paper's two changes (section 4.1.4), on TRL.

Header and termination tokens are left out of the DPO term of both responses, and a negative
log-likelihood of the chosen response, with every one of its tokens, is added. TRL has one mask
for both terms and takes the likelihood's mean over a micro-batch's tokens, so the loss is ours.
Shapes: B pairs, T tokens; rows 0..B-1 of a batch are chosen, B..2B-1 rejected.

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
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from posttrain.errors import GuardFailed
from posttrain.likelihood import IGNORED
from posttrain.models.chat import load_tokenizer
from posttrain.models.folders import context_length
from posttrain.rows import Preference
from posttrain.settings.training import DpoSettings
from posttrain.training.arguments import lora_config, trainer_arguments
from posttrain.training.checkpoints import prepare_work
from posttrain.training.job import Job, TrainingReport
from posttrain.training.memory import memory_advice
from posttrain.training.mixing import mixed
from posttrain.training.ranks import from_all_ranks, sum_over_ranks
from posttrain.training.running import (
    NUM_LAST_STEPS,
    History,
    NamingRows,
    OurTrainer,
    PairMean,
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
    """Pads pairs on the right, chosen responses before rejected ones."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """`input_ids`, `attention_mask`, `target`, `dpo` [2B, T]; references [B] if there."""

        def padded(name: str, value: int) -> torch.Tensor:
            sides = [row[f"{side}_{name}"] for side in ("chosen", "rejected") for row in rows]
            return pad_sequence([torch.tensor(s) for s in sides], True, value)

        input_ids = padded("ids", self.pad_token_id)
        lengths = [len(row[f"{side}_ids"]) for side in ("chosen", "rejected") for row in rows]
        batch = {
            "input_ids": input_ids,
            "attention_mask": (
                torch.arange(input_ids.shape[1]) < torch.tensor(lengths).unsqueeze(1)
            ).long(),
            "target": padded("target", 0),
            "dpo": padded("dpo", 0),
        }
        for name in REFERENCE_COLUMNS:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


class Dpo(OurTrainer, PairMean, DPOTrainer):
    """TRL's trainer with the paper's loss; the reference is the model it was loaded with."""

    loss_is_scaled_for_ga = True
    nll_weight: float = 0.0

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Log-probabilities of both responses under the model before its first update.

        TRL's own are cached under a key that knows nothing of the masks.
        """
        rows = [dict(row) for row in dataset]
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
            batch = self._prepare_inputs(self.data_collator([rows[i] for i in part]))
            with torch.no_grad(), self.accelerator.autocast():
                sums = (self.log_probs(model, batch) * batch["dpo"][:, 1:]).sum(1)
            chosen, rejected = sums.float().chunk(2)
            found += zip(part, chosen.tolist(), rejected.tolist(), strict=True)
        for i, better, worse in from_all_ranks(found):
            rows[i] |= dict(zip(REFERENCE_COLUMNS, (better, worse), strict=True))
        model.train(training)
        return in_memory(rows)

    def log_probs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Log-probability of each token but the first [2B, T-1]; 0 where it is no target."""
        labels = batch["input_ids"].masked_fill(batch["target"] == 0, IGNORED)
        outputs = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
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
        target, dpo = inputs["target"][:, 1:], inputs["dpo"][:, 1:]
        chosen, rejected = (logps * dpo).sum(1).chunk(2)
        chosen_ratio = chosen - inputs["reference_chosen"]
        rejected_ratio = rejected - inputs["reference_rejected"]
        dpo_loss = -logsigmoid(self.beta * (chosen_ratio - rejected_ratio))
        num_chosen = len(chosen)
        nll = -logps[:num_chosen].sum(1) / target[:num_chosen].sum(1)
        # Processes average their gradients, and this is a share of a sum.
        scale = self.accelerator.num_processes / num_items_in_batch if num_items_in_batch else None
        loss = (dpo_loss + self.nll_weight * nll).sum() * (scale or 1 / num_chosen)
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
        self._total_train_tokens += sum_over_ranks(int(inputs["attention_mask"].sum()))
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def _record(self, values_B: Mapping[str, torch.Tensor]) -> None:
        for name, values in values_B.items():
            self._metrics["train"][name].extend(from_all_ranks(values.detach().float().tolist()))


def dpo_trainer(
    policy: Path,
    tokenizer: PreTrainedTokenizerBase,
    kept: Sequence[TokenRow],
    settings: DpoSettings,
    job: Job,
) -> Dpo:
    """A trainer whose policy and reference both come from the folder `policy`."""
    assert isinstance(tokenizer.pad_token_id, int)
    trainer = Dpo(
        model=str(policy),
        args=DPOConfig(
            **trainer_arguments(settings, job, len(kept)),
            beta=settings.beta,
            precompute_ref_log_probs=True,
        ),
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
