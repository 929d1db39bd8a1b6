"""Samples with transformers in the step's own process: small models, any machine, no extra install.

Knows how to decode a batch: each prompt is read once for all of its samples, rows of like length
go together, a finished row leaves the batch, and each row draws from its own seed. Cannot follow a
JSON schema; `posttrain.sampling.vllm_engine` can.

    TransformersEngine(Path("rounds/tiny/base"), TransformersEngineSettings()).generate(requests)

Shapes: P prompts, R rows (samples), T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from posttrain.errors import BadInput, StepFailed
from posttrain.generation import Request, Sample
from posttrain.models.chat import end_token_ids, load_tokenizer
from posttrain.models.devices import Device, pick_device
from posttrain.models.files import context_length
from posttrain.models.folders import no_progress_bars
from posttrain.rows import FinishReason
from posttrain.sampling.draws import draw_tokens, uniforms
from posttrain.sampling.prompts import (
    AllowedTokens,
    allowed_tokens,
    ends_in_stop,
    render_requests,
    response_text,
)
from posttrain.settings.engines import TransformersEngineSettings

_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"


@dataclass
class _Row:
    """One sample while it grows."""

    request: Request
    prompt: list[int]
    seed: int
    allowed: AllowedTokens
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class TransformersEngine:
    """A causal language model in this process."""

    def __init__(
        self,
        model_folder: Path,
        settings: TransformersEngineSettings,
        template: Path | None = None,
        device: Device = "auto",
    ) -> None:
        """Load model and tokenizer.

        Args:
            model_folder: a Hugging Face model folder.
            settings: dtype and batch size.
            template: chat template in place of the tokenizer's own.
            device: where to compute, as `resources.device` says it.

        Raises:
            BadInput: the folder holds no model or no usable tokenizer, or the device is missing.
        """
        self._settings, self._template = settings, template
        self._batch_size = settings.batch_size
        self._device = torch.device(pick_device(device))
        self.reload(model_folder)

    def generate(self, requests: list[Request]) -> list[list[Sample]]:
        """One list of n samples per request, in the requests' order.

        Raises:
            BadInput: a request has a JSON schema, or too long a prompt, or choices that max_tokens
                would cut.
            StepFailed: a batch does not fit the device's memory.
        """
        for request in requests:
            if request.json_schema is not None:
                raise BadInput(
                    f"request {request.id}: the transformers engine cannot follow json_schema; "
                    "use choices, or an engine of type vllm"
                )
        prompts = render_requests(self._tokenizer, requests, self._context)
        rows: list[_Row] = []
        for request, prompt in zip(requests, prompts, strict=True):
            allowed = allowed_tokens(self._tokenizer, request) if request.choices else {}
            rows += [_Row(request, prompt, request.seed + i, allowed) for i in range(request.n)]
        # Sorting is stable, so the samples of a request stay together and share its prefill.
        ordered = sorted(rows, key=lambda row: (len(row.prompt), row.request.max_tokens))
        with torch.inference_mode(), _out_of_memory_told():
            for start in range(0, len(ordered), self._batch_size):
                self._decode(ordered[start : start + self._batch_size])
        samples = iter([self._sample(row) for row in rows])
        return [[next(samples) for _ in range(request.n)] for request in requests]

    def reload(self, model_folder: Path) -> None:
        """Load another model folder in place of this one.

        Raises:
            BadInput: the folder holds no model or no usable tokenizer.
        """
        self._tokenizer = load_tokenizer(model_folder, self._template)
        self._ends = end_token_ids(self._tokenizer)
        self._context = context_length(model_folder)
        # Two models at once may be more than fits.
        vars(self).pop("_model", None)
        self._model = _load(model_folder, self._settings, self._device)

    def restart(self) -> None:
        """Hand back what a batch that did not fit has left."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Forget the weights and hand their memory back."""
        del self._model
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _decode(self, rows: list[_Row]) -> None:
        """Grow the rows of a batch until each has ended."""
        cache = DynamicCache(config=self._model.config)
        logits_RV, mask_RT = self._read_prompts(rows, cache)
        for step in range(max(row.request.max_tokens for row in rows)):
            tokens_R = self._next_tokens(rows, logits_RV, step)
            kept = [place for place, row in enumerate(rows) if row.finish_reason is None]
            if not kept:
                return
            if len(kept) < len(rows):
                index_R = torch.tensor(kept, device=self._device)
                cache.batch_select_indices(index_R)
                mask_RT, tokens_R = mask_RT[index_R], tokens_R[index_R]
                rows = [rows[place] for place in kept]
            mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(rows), 1)], dim=1)
            logits_RV = self._forward(tokens_R[:, None], mask_RT, cache)

    def _read_prompts(
        self, rows: Sequence[_Row], cache: DynamicCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read each prompt once, then repeat it for its samples: next logits and mask, per row."""
        distinct: list[list[int]] = []
        places = []
        for row in rows:
            if not distinct or row.prompt is not distinct[-1]:
                distinct.append(row.prompt)
            places.append(len(distinct) - 1)
        longest = max(map(len, distinct))
        pad = int(self._tokenizer.pad_token_id)
        padded = [[pad] * (longest - len(ids)) + ids for ids in distinct]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in distinct]
        ids_PT = torch.tensor(padded, device=self._device)
        mask_PT = torch.tensor(mask, device=self._device)
        logits_PV = self._forward(ids_PT, mask_PT, cache)
        place_R = torch.tensor(places, device=self._device)
        cache.batch_select_indices(place_R)
        return logits_PV[place_R], mask_PT[place_R]

    def _forward(
        self, ids_RT: torch.Tensor, mask_RT: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits (R, V) after the last of the new tokens; mask_RT covers the cache as well."""
        positions_RT = (mask_RT.cumsum(-1) - 1).clamp(min=0)[:, -ids_RT.shape[1] :]
        output = self._model(
            input_ids=ids_RT,
            attention_mask=mask_RT,
            position_ids=positions_RT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits.float()

    def _next_tokens(
        self, rows: Sequence[_Row], logits_RV: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Draw, record and return a token for each row, and mark the rows that end with it."""
        bounded_RV = logits_RV
        if any(row.allowed for row in rows):
            bounded_RV = logits_RV.clone()
            for place, row in enumerate(rows):
                if row.allowed:
                    allowed = sorted(row.allowed[tuple(row.token_ids)])
                    kept_A = logits_RV[place, allowed]
                    bounded_RV[place] = -torch.inf
                    bounded_RV[place, allowed] = kept_A
        temperature_R = self._column([row.request.temperature for row in rows])
        top_p_R = self._column([row.request.top_p for row in rows])
        numbers_R = uniforms([row.seed for row in rows], step)
        tokens_R = draw_tokens(bounded_RV, numbers_R, temperature_R, top_p_R)
        if any(row.request.logprobs for row in rows):
            logprobs_R = bounded_RV.log_softmax(-1).gather(-1, tokens_R[:, None])[:, 0].tolist()
            for row, logprob in zip(rows, logprobs_R, strict=True):
                row.logprobs.append(logprob)
        for row, token in zip(rows, tokens_R.tolist(), strict=True):
            row.token_ids.append(token)
            row.finish_reason = self._ending(row)
        return tokens_R

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    def _ending(self, row: _Row) -> FinishReason | None:
        if row.token_ids[-1] in self._ends:
            return "stop"
        if row.request.stop and ends_in_stop(self._tokenizer, row.token_ids, row.request.stop):
            return "stop"
        return "length" if len(row.token_ids) == row.request.max_tokens else None

    def _sample(self, row: _Row) -> Sample:
        assert row.finish_reason is not None
        return Sample(
            text=response_text(self._tokenizer, row.token_ids, row.request.stop),
            token_ids=tuple(row.token_ids),
            finish_reason=row.finish_reason,
            logprobs=tuple(row.logprobs) if row.request.logprobs else None,
        )


@contextmanager
def _out_of_memory_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # On a processor torch raises a plain RuntimeError, told by its text alone.
        if not isinstance(error, torch.OutOfMemoryError) and _NO_MEMORY not in str(error):
            raise
        raise StepFailed(
            "a batch does not fit the device's memory; lower sampling.engine.batch_size or "
            "sampling.shard_size"
        ) from error


def _load(
    folder: Path, settings: TransformersEngineSettings, device: torch.device
) -> PreTrainedModel:
    dtype = settings.dtype
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    try:
        # Any: the stubs type `to` for a call on the class. Models come ready for inference.
        with no_progress_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: no model could be loaded ({error})") from error
    loaded: PreTrainedModel = model.to(device)
    return loaded
