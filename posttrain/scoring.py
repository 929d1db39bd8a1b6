"""Scores of dialogs under a reward model, each independent of what else is in its batch.

Knows sequence classification heads with one label. Knows nothing of candidates or gates.

    RewardScorer(Path("reward"), template=None).score([Dialog(messages)])
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification

from posttrain.errors import BadInput, GuardFailed
from posttrain.models.chat import load_tokenizer, render_dialog
from posttrain.models.folders import (
    check_model_folder,
    context_length,
    no_progress_bars,
    read_config,
    read_tensors,
)
from posttrain.rows import Message

TOO_LONG = "too long to score"
"""Why a row without a score is dropped."""


class Dialog(NamedTuple):
    """What is scored: turns that end with an assistant's, and the tools it was shown."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None


class RewardScorer:
    """A loaded reward model. Scores are float32, unbounded, higher is better."""

    def __init__(
        self,
        folder: Path,
        template: Path | None,
        batch_tokens: int = 8192,
        device: str = "cpu",
    ) -> None:
        """Load the model.

        Args:
            folder: A model folder with a score head, as `train_reward` writes it.
            template: The plan's chat template; None takes the tokenizer's own.
            batch_tokens: Tokens of one forward pass, padding included.
            device: Where to compute, e.g. `cpu` or `cuda`.

        Raises:
            BadInput: the folder holds no model with a head of exactly one label.
        """
        check_model_folder(folder)
        _check_head(folder)
        self._tokenizer = load_tokenizer(folder, template)
        self._context = context_length(folder)
        self._batch_tokens = batch_tokens
        self._device = torch.device(device)
        with no_progress_bars():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        # The head is read at the right-most token that is no padding.
        model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = model.eval().to(self._device)

    def score(self, dialogs: Sequence[Dialog]) -> list[float | None]:
        """One score a dialog, in their order, read at the dialog's last token.

        None stands for a dialog longer than the model's context. A response that was cut at the
        end of the context is one: its end token, which was never sampled, does not fit.

        Raises:
            GuardFailed: a score is NaN or infinite; names its index.
        """
        rows = [list(render_dialog(self._tokenizer, *dialog).input_ids) for dialog in dialogs]
        fitting = [index for index, row in enumerate(rows) if len(row) <= self._context]
        scores: list[float | None] = [None] * len(rows)
        for part in _batches([len(rows[i]) for i in fitting], self._batch_tokens):
            indices = [fitting[place] for place in part]
            values = self._forward([rows[i] for i in indices])
            for index, value in zip(indices, values.tolist(), strict=True):
                scores[index] = value
        for index, score in enumerate(scores):
            if score is not None and not math.isfinite(score):
                raise GuardFailed(f"dialog {index} scores {score}; the reward model is unusable")
        return scores

    def _forward(self, rows: Sequence[list[int]]) -> torch.Tensor:
        pad = self._tokenizer.pad_token_id
        width = max(len(row) for row in rows)
        input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(width) < lengths.unsqueeze(1)).long()
        with torch.inference_mode():
            output = self._model(
                input_ids=input_ids.to(self._device),
                attention_mask=mask.to(self._device),
                use_cache=False,
            )
        scores: torch.Tensor = output.logits[:, 0].float().cpu()
        return scores


def _check_head(folder: Path) -> None:
    labels = read_config(folder).get("id2label")
    # transformers leaves out the number of labels where it is its default of two.
    num_labels = len(labels) if isinstance(labels, dict) else 2
    head = read_tensors(folder).get("score.weight")
    if num_labels != 1 or head is None or head.shape[0] != 1:
        found = "no score head" if head is None else f"a head of {head.shape[0]} labels"
        raise BadInput(
            f"{folder}: expected a reward model, with a head of one label; it has {found}"
        )


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of like length, so that each batch times its longest row fits."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
