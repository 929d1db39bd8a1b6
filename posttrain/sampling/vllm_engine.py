"""Samples with vLLM, in worker processes of its own that end with the step.

Knows which options vLLM needs; `vllm_requests` knows its sampling parameters. The step's
process renders prompts and decodes responses with posttrain's own tokenizer code, so both engines
say the same; vLLM itself is imported only in `posttrain.sampling.vllm_worker`.

    engine = VllmEngine(Path("runs/my/round-1/policy"), VllmEngineSettings(type="vllm"))
    engine.generate(requests)
    engine.reload(Path("runs/my/round-2/policy"))
"""

from pathlib import Path
from typing import Any

from posttrain.errors import BadInput
from posttrain.generation import Request, Sample
from posttrain.models.chat import end_token_ids, load_tokenizer
from posttrain.models.files import context_length
from posttrain.sampling.prompts import render_requests
from posttrain.sampling.vllm_requests import Output, to_samples, vllm_params
from posttrain.sampling.vllm_workers import VllmWorkers, model_options
from posttrain.settings.engines import VllmEngineSettings


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
        self._model_folder = model_folder
        self._workers = VllmWorkers(settings, _options(model_folder, settings))

    def generate(self, requests: list[Request]) -> list[list[Sample]]:
        """One list of n samples per request, in the requests' order.

        Raises:
            BadInput: too long a prompt, or a schema that vLLM cannot follow.
            StepFailed: a worker died; the engine is closed.
        """
        prompts = render_requests(self._tokenizer, requests, self._context)
        ends = sorted(end_token_ids(self._tokenizer))
        sent = [
            {"prompt": prompt, "params": vllm_params(self._tokenizer, request, ends)}
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        count = len(self._workers)
        dealt = [{"do": "generate", "requests": sent[place::count]} for place in range(count)]
        answers = self._workers.ask(dealt, None)
        return [
            to_samples(
                self._tokenizer,
                request,
                [Output(**one) for one in answers[place % count]["samples"][place // count]],
            )
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
        if self._workers.reloads:
            message = {"do": "reload", "model": str(model_folder.resolve())}
            self._workers.ask([message] * len(self._workers), self._settings.start_seconds)
            self._model_folder = model_folder
        else:
            self._model_folder = model_folder
            self.restart()
        self._tokenizer = tokenizer

    def restart(self) -> None:
        """End the workers and start new ones with the same model.

        Raises:
            StepFailed: vLLM could not load the model; with the end of its log.
        """
        self.close()
        options = _options(self._model_folder, self._settings)
        self._workers = VllmWorkers(self._settings, options)

    def close(self) -> None:
        """End every process of the engine."""
        self._workers.close()


def _options(model_folder: Path, settings: VllmEngineSettings) -> dict[str, Any]:
    return {
        **model_options(model_folder, settings),
        # The model's generation_config.json would add end tokens and samplers of its own.
        "generation_config": "vllm",
        # Free white space is where weak models run off in JSON; xgrammar, the default, refuses more
        # schemas.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
    }
