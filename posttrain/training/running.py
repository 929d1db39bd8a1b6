"""Run, watch, resume and publish one TRL trainer; the part that all three share.

Knows the Trainer's callbacks and state. Knows no loss.

    with own_process_state(job):
        history = run(trainer, job, checkpoint)
"""

import gc
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import (
    AcceleratorState,
    GradientState,
)
from accelerate.utils import DistributedType
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from posttrain.errors import GuardFailed, Preempted, StepFailed
from posttrain.models.files import model_bytes
from posttrain.models.folders import no_progress_bars, save_model_folder
from posttrain.rows import canonical_json
from posttrain.settings.training import TrainingSettings
from posttrain.steps.ending import patient
from posttrain.training.arguments import on_cpu
from posttrain.training.checkpoints import METRICS_FILE, read_state
from posttrain.training.job import Dropped, Job, TrainingReport
from posttrain.training.ranks import any_rank, from_all_ranks, is_main
from posttrain.training.tokens import ROWS, TokenRow, digest_of

NUM_LAST_STEPS = 10
"""Optimizer steps over which a report's figures are means; one step alone is noisy."""
TRACKED = "TENSORBOARD_LOGGING_DIR"
"""Where transformers looks for the folder of TensorBoard's files."""
MOST_NAMED = 64
"""Rows that an error names."""

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
History = list[dict[str, Any]]


class OurTrainer(Trainer):
    """One of TRL's trainers, quiet, whose rows are known by their places."""

    rows_of_step: Sequence[int] = ()
    """Places of the rows that the last optimizer step was computed from, on this process."""
    _total_train_tokens: int

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Take the rows' places out of a step's batches, before anything computes with them."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self.rows_of_step = [int(row) for batch in batches for row in batch.pop(ROWS)]
        return batches, num_items

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A published model's card is written elsewhere."""

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not counted: it walks over all parameters at every step, and nothing reads it."""
        return 0


@dataclass(frozen=True)
class NamingRows:
    """A collator that also says which rows its batch was made of."""

    collate: Collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the other collator makes, and `rows`: their places."""
        return {**self.collate(rows), ROWS: [int(place) for row in rows for place in row[ROWS]]}


class Journal(TrainerCallback):
    """Writes metrics.jsonl, reports progress, and stops a training that goes wrong."""

    def __init__(
        self,
        job: Job,
        check: Callable[[History], None],
        rows_of_step: Callable[[], Sequence[str]],
    ) -> None:
        """Watch a training.

        Args:
            job: where its metrics go.
            check: called with all steps so far after every step; raises to stop.
            rows_of_step: ids of the rows that the last step was computed from, on this process.
        """
        self._file = job.work / METRICS_FILE
        self._progress = job.progress
        self._check = check
        self._rows_of_step = rows_of_step
        self.asked_to_end: Callable[[], bool] = lambda: False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """After a resume the file may hold steps past the checkpoint: write it anew."""
        if is_main():
            _rewrite(self._file, _steps(state.log_history))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Report progress; save and stop where that was asked for."""
        self._progress(state.global_step, state.max_steps)
        if any_rank(self.asked_to_end()):
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Append the step's line.

        Raises:
            GuardFailed: the loss is no finite number, or the training's own check fails.
        """
        entry = state.log_history[-1]
        if "loss" not in entry:
            return
        if is_main():
            with self._file.open("a") as stream:
                stream.write(_line(entry))
        if not math.isfinite(float(entry["loss"])):
            ids = from_all_ranks(list(self._rows_of_step()))
            more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
            raise GuardFailed(
                f"the loss is {entry['loss']} at step {entry['step']}; lower the learning rate, "
                f"and look at {self._file} and at the rows of that step: "
                f"{', '.join(ids[:MOST_NAMED])}{more}"
            )
        self._check(_steps(state.log_history))


@contextmanager
def own_process_state(job: Job) -> Iterator[None]:
    """Everything global that a training touches, as it was before, once the training is over."""
    tracked = os.environ.get(TRACKED)
    if job.tracked is not None:
        os.environ[TRACKED] = str(job.tracked)
    threads = torch.get_num_threads()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [] if on_cpu(job) else list(range(torch.cuda.device_count()))
    torch.set_num_threads(job.resources.threads)
    # Collections during and after training then skip all that was there before: 0.3 s each.
    gc.freeze()
    try:
        with torch.random.fork_rng(devices=devices), no_progress_bars():
            yield
    finally:
        if tracked is None:
            os.environ.pop(TRACKED, None)
        else:
            os.environ[TRACKED] = tracked
        torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        gc.collect()
        gc.unfreeze()
        if devices:
            torch.cuda.empty_cache()


def identity_of(
    kind: str, base: Path, settings: TrainingSettings, job: Job, rows: Sequence[TokenRow]
) -> str:
    """A text that is equal for two trainings exactly if one may continue the other."""
    parts = {
        "kind": kind,
        "settings": settings.model_dump(mode="json", exclude={"variants", "average", "init"}),
        "precision": job.precision,
        "model_bytes": model_bytes(base),
        "rows": digest_of(rows),
    }
    return canonical_json(parts)


def run(
    trainer: OurTrainer,
    job: Job,
    checkpoint: Path | None,
    ids: Sequence[str],
    check: Callable[[History], None] = lambda history: None,
) -> History:
    """Train to the end and return one log entry a step, those before a resume included.

    Args:
        trainer: ready to train.
        job: where and with what.
        checkpoint: to continue from; None starts afresh.
        ids: of the rows by their places, see `OurTrainer`.
        check: called with all steps so far after every step; raises to stop.

    Raises:
        GuardFailed: see `Journal`.
        Preempted: SIGTERM came; a checkpoint is written.
        StepFailed: training ended before its last step.
    """
    trainer.remove_callback(PrinterCallback)
    journal = Journal(job, check, lambda: [ids[place] for place in trainer.rows_of_step])
    trainer.add_callback(journal)
    if checkpoint is not None:
        saved = read_state(checkpoint)
        history = _steps(saved["log_history"])
        if saved["global_step"] >= saved["max_steps"]:
            # Resumed, the Trainer would take one more step where max_steps cuts an epoch short.
            trainer._load_from_checkpoint(str(checkpoint))
            if is_main():
                _rewrite(job.work / METRICS_FILE, history)
            return history
        # TRL counts tokens from zero after a resume.
        trainer._total_train_tokens = int(history[-1]["num_tokens"])
    with patient() as journal.asked_to_end:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        asked = any_rank(journal.asked_to_end())
    state = trainer.state
    if state.global_step < state.max_steps and asked:
        raise Preempted(
            f"asked to end (SIGTERM) at step {state.global_step} of {state.max_steps}, which is "
            "saved; run the same command again to continue"
        )
    if state.global_step < state.max_steps:
        raise StepFailed(f"training ended at step {state.global_step} of {state.max_steps}")
    return _steps(state.log_history)


def publish(trainer: OurTrainer, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the trained model, adapters merged, as bfloat16; sharded weights are gathered first."""
    accelerator = trainer.accelerator
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    # Every process has to take part in this.
    state = accelerator.get_state_dict(trainer.model) if sharded else None
    if not is_main():
        return
    model: Any = accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    assert isinstance(model, PreTrainedModel)
    save_model_folder(model, tokenizer, out, state=state)


def report(history: History, num_rows: int, dropped: list[Dropped]) -> TrainingReport:
    """The last steps' figures as means."""
    last = history[-NUM_LAST_STEPS:]
    ours = {"step", "epoch", "learning_rate", "num_tokens"}
    metrics = {
        name: sum(float(entry[name]) for entry in last) / len(last)
        for name in history[-1]
        if name not in ours
    }
    metrics |= {
        "first_loss": float(history[0]["loss"]),
        "steps": float(history[-1]["step"]),
        "tokens": float(history[-1]["num_tokens"]),
        "rows": float(num_rows),
    }
    # A row that is seen several times is left out once.
    return TrainingReport(metrics, list(dict.fromkeys(dropped)))


def _steps(history: History) -> History:
    """The entries of optimizer steps, without the summary of a whole run."""
    return [entry for entry in history if "loss" in entry]


def _rewrite(file: Path, history: History) -> None:
    file.write_text("".join(map(_line, history)))


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True) + "\n"
