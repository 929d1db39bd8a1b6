"""Samples with vLLM, in worker processes of its own that end with the step.

Knows how requests become vLLM's sampling parameters, and which options a machine needs. The step's
process renders prompts and decodes responses with posttrain's own tokenizer code, so both engines
say the same; vLLM itself is imported only in `posttrain.sampling.vllm_worker`.

    engine = VllmEngine(Path("runs/my/round-1/policy"), VllmEngineSettings(type="vllm"))
    engine.generate(requests)
    engine.reload(Path("runs/my/round-2/policy"))
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.errors import BadInput, PosttrainError
from posttrain.generation import Request, Sample
from posttrain.models.chat import end_token_ids, load_tokenizer
from posttrain.models.folders import context_length
from posttrain.sampling.prompts import (
    allowed_tokens,
    render_requests,
    response_text,
)
from posttrain.sampling.vllm_worker_process import WorkerProcess
from posttrain.settings.engines import VllmEngineSettings

# On a processor compiling takes longer than it saves, and a prompt that is cut in chunks makes a
# request's own seed fail.
CPU_OPTIONS = {"enforce_eager": True, "enable_chunked_prefill": False}


class VllmEngine:
    """One or more vLLM workers with the same weights."""

    def __init__(
        self, model_folder: Path, settings: VllmEngineSettings, template: Path | None = None
    ) -> None:
        """Start the workers and load the model.

        Args:
            model_folder: a Hugging Face model folder.
            settings: interpreter, memory and parallelism.
            template: chat template in place of the tokenizer's own.

        Raises:
            BadInput: vLLM is not installed, or the folder holds no usable tokenizer.
            StepFailed: vLLM could not load the model; with the end of its log.
        """
        self._tokenizer = load_tokenizer(model_folder, template)
        self._template = template
        self._settings = settings
        longest = context_length(model_folder)
        self._context = min(settings.max_model_len or longest, longest)
        self._workers: list[WorkerProcess] = []
        self._start(model_folder)

    def _start(self, model_folder: Path) -> None:
        message = {
            "do": "load",
            "options": _options(model_folder, self._settings),
            "cpu_options": CPU_OPTIONS,
        }
        try:
            for place in range(self._settings.data_parallel_size):
                environment = _environment(self._settings, place)
                self._workers.append(WorkerProcess(self._settings.python, environment))
            answers = self._ask([message] * len(self._workers), self._settings.start_seconds)
        except PosttrainError:
            self.close()
            raise
        self._reloads = all(answer["reloads"] for answer in answers)

    def generate(self, requests: list[Request]) -> list[list[Sample]]:
        """One list of n samples per request, in the requests' order.

        Raises:
            BadInput: too long a prompt, or a schema that vLLM cannot follow.
            StepFailed: a worker died; the engine is closed.
        """
        prompts = render_requests(self._tokenizer, requests, self._context)
        ends = sorted(end_token_ids(self._tokenizer))
        sent = [
            {"prompt": prompt, "params": _params(self._tokenizer, request, ends)}
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        count = len(self._workers)
        dealt = [{"do": "generate", "requests": sent[place::count]} for place in range(count)]
        answers = self._ask(dealt, None)
        return [
            self._samples(request, answers[place % count]["samples"][place // count])
            for place, request in enumerate(requests)
        ]

    def reload(self, model_folder: Path) -> None:
        """Load other weights of the same architecture, and forget every cached prompt.

        Takes a second or less on an accelerator. Without one the workers start afresh.

        Raises:
            BadInput: the folder's tokenizer or context differs from the loaded one.
            StepFailed: the weights do not fit the loaded model.
        """
        tokenizer = load_tokenizer(model_folder, self._template)
        if tokenizer.get_vocab() != self._tokenizer.get_vocab():
            raise BadInput(f"{model_folder}: its tokenizer differs; open a new engine for it")
        if context_length(model_folder) < self._context:
            raise BadInput(f"{model_folder}: its context is shorter; open a new engine for it")
        if self._reloads:
            message = {"do": "reload", "model": str(model_folder.resolve())}
            self._ask([message] * len(self._workers), self._settings.start_seconds)
        else:
            self.close()
            self._start(model_folder)
        self._tokenizer = tokenizer

    def close(self) -> None:
        """End every process of the engine."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def _ask(
        self, messages: Sequence[dict[str, Any]], seconds: float | None
    ) -> list[dict[str, Any]]:
        """One message to each worker, then one answer of each; any failure ends them all."""
        if not self._workers:
            raise BadInput("this vLLM engine is closed; open a new one")
        try:
            for worker, message in zip(self._workers, messages, strict=True):
                worker.send(message)
            return [worker.receive(seconds) for worker in self._workers]
        except PosttrainError:
            self.close()
            raise

    def _samples(self, request: Request, raw: Sequence[dict[str, Any]]) -> list[Sample]:
        samples = [
            Sample(
                text=response_text(self._tokenizer, one["token_ids"], request.stop),
                token_ids=tuple(one["token_ids"]),
                finish_reason=one["finish_reason"],
                logprobs=one["logprobs"],
            )
            for one in raw
        ]
        # vLLM takes no n above 1 for greedy decoding, whose samples are all equal.
        return samples * request.n if request.temperature == 0 else samples


def _options(model_folder: Path, settings: VllmEngineSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": str(model_folder.resolve()),
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "disable_log_stats": True,
        "trust_remote_code": False,
        # The model's generation_config.json would add end tokens and samplers of its own.
        "generation_config": "vllm",
        # Free white space is where weak models run off in JSON; xgrammar, the default, refuses more
        # schemas.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
    }
    if settings.max_model_len is not None:
        options["max_model_len"] = settings.max_model_len
    if settings.quantization is not None:
        options["quantization"] = settings.quantization
    return options


def _environment(settings: VllmEngineSettings, place: int) -> dict[str, str]:
    variables = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_kv_cache_gb),
        "VLLM_DO_NOT_TRACK": "1",
        # The engine in the worker itself: it starts sooner, and nothing else could outlive it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if settings.data_parallel_size > 1:
        each = settings.tensor_parallel_size
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = shown if shown != [""] else list(map(str, range(each * (place + 1))))
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(names[each * place : each * (place + 1)])
    return variables


def _params(
    tokenizer: PreTrainedTokenizerBase, request: Request, ends: Sequence[int]
) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams; sample i of n gets seed + i there as well."""
    params: dict[str, Any] = {
        "n": 1 if request.temperature == 0 else request.n,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "stop": list(request.stop),
        "stop_token_ids": list(ends),
        "skip_special_tokens": False,
        "logprobs": 0 if request.logprobs else None,
    }
    if request.choices:
        # Called for its check that max_tokens cuts no choice.
        allowed_tokens(tokenizer, request)
        params["structured_outputs"] = {"choice": list(request.choices)}
    elif request.json_schema is not None:
        params["structured_outputs"] = {"json": request.json_schema}
    return params
