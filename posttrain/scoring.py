"""Scores of dialogs under a reward model, each independent of what else is in its batch.

Knows sequence classification heads with one label, in this process or in vLLM's. Knows nothing of
candidates or gates.

    RewardScorer(Path("reward"), template=None).score([Dialog(messages)])
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from transformers import AutoModelForSequenceClassification

from posttrain.errors import BadInput, GuardFailed
from posttrain.models.chat import dialog_ids, load_tokenizer
from posttrain.models.files import context_length, read_config, read_tensors
from posttrain.models.folders import check_model_folder, no_progress_bars
from posttrain.rows import Message, Preference
from posttrain.sampling.vllm_pooling import VllmPooling
from posttrain.settings.engines import VllmEngineSettings

TOO_LONG = "too long to score"
"""Why a row without a score is dropped."""
_CHUNK = 1024
_CPU_BATCH, _GPU_BATCH = 2048, 16384
"""Tokens of a forward pass: past these a batch grows slower, not faster (cache, then memory)."""
_NUM_ALONE = 4
_TOLERANCE = 1e-4
"""How far a row's score may move with its batch; on float32, rounding alone moves it less."""


class Dialog(NamedTuple):
    """What is scored: turns that end with an assistant's, and the tools it was shown."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    id: str = ""
    """What an error calls it; without one, its place in the list."""


class _Forward(Protocol):
    """A loaded model: rows of token ids in, the head's value at each row's last token out."""

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]: ...

    def close(self) -> None: ...


class RewardScorer:
    """A loaded reward model. Scores are float32, unbounded, higher is better."""

    def __init__(
        self,
        folder: Path,
        template: Path | None,
        batch_tokens: int | None = None,
        device: str = "cpu",
        vllm: VllmEngineSettings | None = None,
    ) -> None:
        """Load the model.

        Args:
            folder: A model folder with a score head, as `train_reward` writes it.
            template: The plan's chat template; None takes the tokenizer's own.
            batch_tokens: Tokens of one forward pass, padding included; None suits the device.
            device: Where to compute, e.g. `cpu` or `cuda`; unused by vLLM.
            vllm: Compute in vLLM's own process, in this dtype; None computes in this one.

        Raises:
            BadInput: the folder holds no model with a head of exactly one label, or no tokenizer
                with a padding token that differs from every end token.
        """
        check_reward_model(folder)
        self._tokenizer = load_tokenizer(folder, template)
        self._context = context_length(folder)
        self._forward: _Forward
        if vllm is not None:
            self._context = min(vllm.max_model_len or self._context, self._context)
            self._forward = VllmPooling(folder, vllm)
        else:
            self._forward = _Transformers(
                folder, self._tokenizer.pad_token_id, batch_tokens, torch.device(device)
            )

    def score(self, dialogs: Sequence[Dialog]) -> list[float | None]:
        """One score a dialog, in their order, read at the dialog's last token.

        None stands for a dialog longer than the model's context. A response that was cut at the
        end of the context is one: its end token, which was never sampled, does not fit.

        Raises:
            GuardFailed: a score is NaN or infinite; names its dialog.
        """
        rows = [dialog_ids(self._tokenizer, one.messages, one.tools) for one in dialogs]
        return self.score_tokens(rows, [one.id for one in dialogs])

    def score_tokens(
        self, rows: Sequence[Sequence[int]], names: Sequence[str]
    ) -> list[float | None]:
        """The same for dialogs that are token ids already, each with its name for an error."""
        fitting = [index for index, row in enumerate(rows) if len(row) <= self._context]
        scores: list[float | None] = [None] * len(rows)
        values = self._forward.scores([rows[index] for index in fitting])
        for index, value in zip(fitting, values, strict=True):
            if not math.isfinite(value):
                name = names[index] or f"dialog {index}"
                raise GuardFailed(f"{name} scores {value}; the reward model is unusable")
            scores[index] = value
        return scores

    def close(self) -> None:
        """End every process of the scorer."""
        self._forward.close()


class _Transformers:
    """The model in this process."""

    def __init__(
        self, folder: Path, pad: int, batch_tokens: int | None, device: torch.device
    ) -> None:
        with no_progress_bars():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        # The head is read at the right-most token that is no padding.
        model.config.pad_token_id = pad
        self.model = model.eval().to(device)
        self._pad, self._device = pad, device
        self._batch_tokens = batch_tokens or (_CPU_BATCH if device.type == "cpu" else _GPU_BATCH)

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Rows of like length share a batch; each keeps its place."""
        scores = [0.0] * len(rows)
        for part in batches([len(row) for row in rows], self._batch_tokens):
            values = self._batch([rows[index] for index in part])
            for index, value in zip(part, values.tolist(), strict=True):
                scores[index] = value
        return scores

    def close(self) -> None:
        """The model goes with the last name for it."""

    def _batch(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        width = max(len(row) for row in rows)
        input_ids = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows])
        with torch.inference_mode():
            # Padding stands to the right, where causal attention never looks: without a mask, the
            # same scores come from faster kernels. `check_alone` finds a model that looks there.
            output = self.model(input_ids=input_ids.to(self._device), use_cache=False)
        scores: torch.Tensor = output.logits[:, 0].float().cpu()
        return scores


def check_reward_model(folder: Path) -> None:
    """Check that a folder holds a whole model with a head of one label.

    Raises:
        BadInput: it does not; says what it has instead.
        Damaged: a weight file is truncated or missing.
    """
    check_model_folder(folder)
    labels = read_config(folder).get("id2label")
    # transformers leaves out the number of labels where it is its default of two.
    num_labels = len(labels) if isinstance(labels, dict) else 2
    head = read_tensors(folder).get("score.weight")
    if head is None:
        found = "no score head"
    elif head.shape[0] != 1:
        found = f"a head of {head.shape[0]} labels"
    elif num_labels != 1:
        found = f"{num_labels} labels in its config.json"
    else:
        return
    raise BadInput(f"{folder}: expected a reward model, with a head of one label; it has {found}")


def score_in_chunks(
    scorer: RewardScorer, dialogs: Sequence[Dialog], progress: Callable[[int, int], None]
) -> list[float | None]:
    """`scorer.score` with news of how far it is: `progress(done, total)` after each chunk.

    Raises:
        GuardFailed: a score is no finite number, or depends on the rows it shares a batch with.
    """
    scores: list[float | None] = []
    for start in range(0, len(dialogs), _CHUNK):
        scores += scorer.score(dialogs[start : start + _CHUNK])
        progress(len(scores), len(dialogs))
    check_alone(scorer, dialogs, scores)
    return scores


def check_alone(
    scorer: RewardScorer, dialogs: Sequence[Dialog], scores: Sequence[float | None]
) -> None:
    """Score a few dialogs one by one: padding and neighbours must not matter.

    Raises:
        GuardFailed: they do; names the dialog.
    """
    known = [(one, score) for one, score in zip(dialogs, scores, strict=True) if score is not None]
    step = max(1, len(known) // _NUM_ALONE)
    for dialog, score in known[::step][:_NUM_ALONE]:
        (alone,) = scorer.score([dialog])
        assert alone is not None
        if abs(alone - score) > _TOLERANCE:
            raise GuardFailed(
                f"{dialog.id} scores {score} in its batch and {alone} alone, expected a "
                f"difference of at most {_TOLERANCE}: the reward model reads padding or other rows"
            )


def score_pairs(
    scorer: RewardScorer, pairs: Sequence[Preference]
) -> list[tuple[float, float] | None]:
    """The scores of each pair's best and worst response; None where one does not fit.

    Raises:
        GuardFailed: as `score_in_chunks`.
    """
    dialogs = [
        Dialog((*pair.prompt, *response), pair.tools, pair.id)
        for pair in pairs
        for response in (pair.ranking()[0], pair.ranking()[-1])
    ]
    scores = score_in_chunks(scorer, dialogs, lambda done, total: None)
    return [
        None if best is None or worst is None else (best, worst)
        for best, worst in zip(scores[::2], scores[1::2], strict=True)
    ]


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of like length, so that each batch times its longest row fits."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
