"""Continued pre-training of a model on raw text, for an expert branch (section 4.3.1), on TRL.

Knows rows of text. Knows nothing of where documents come from.

    train_text(base, documents, out, settings, job)
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from posttrain.models.chat import load_tokenizer
from posttrain.models.files import context_length, end_of_text
from posttrain.rows import Document
from posttrain.settings.pretraining import PretrainSettings
from posttrain.training.checkpoints import prepare_work
from posttrain.training.job import Job, TrainingReport
from posttrain.training.memory import memory_advice
from posttrain.training.packing import PaddedRows
from posttrain.training.running import (
    identity_of,
    own_process_state,
    publish,
    report,
    run,
)
from posttrain.training.sft import sft_trainer
from posttrain.training.text import text_tokens, tokens_by_source


def train_text(
    base: Path, rows: Sequence[Document], out: Path, settings: PretrainSettings, job: Job
) -> TrainingReport:
    """Go on pre-training `base` on documents and write the model to `out` as bfloat16.

    Every token but the first of a document, or of a part of it, is a target.

    Raises:
        BadInput: a source has no documents, or the base is no model folder.
        GuardFailed: the loss stops being a finite number.
        StepFailed: memory ran out.
    """
    with own_process_state(job), memory_advice("expert", settings, job):
        return _train(base, rows, out, settings, job)


def _train(
    base: Path, rows: Sequence[Document], out: Path, settings: PretrainSettings, job: Job
) -> TrainingReport:
    tokenizer = load_tokenizer(base, job.template)
    limit = min(settings.max_length, context_length(base))
    kept, dropped = text_tokens(tokenizer, end_of_text(base), rows, settings, limit)
    checkpoint = prepare_work(job.work, identity_of("pretrain", base, settings, job, kept))
    collate = PaddedRows(int(tokenizer.pad_token_id))
    trainer = sft_trainer(base, tokenizer, kept, collate, settings, job)
    history = run(trainer, job, checkpoint, [row.id for row in rows])
    publish(trainer, tokenizer, out)
    done = report(history, len(kept), dropped)
    read = tokens_by_source(kept, rows)
    return replace(done, metrics=done.metrics | {f"tokens/{name}": n for name, n in read.items()})
