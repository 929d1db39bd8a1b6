"""Samples from a server that already runs, over OpenAI's completions protocol as vLLM extends it.

Knows how requests become bodies, and which answers cannot be used. Prompts go out as token ids and
come back as token ids, so all engines render and decode alike; each request carries its seed, so
which one a sample draws from depends neither on `concurrency` nor on what else the server does.

    settings = OpenAIEngineSettings(url="http://localhost:8000/v1")
    OpenAIEngine(Path("runs/my/round-1/policy/model"), settings).generate(requests)
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from posttrain.errors import BadInput
from posttrain.generation import Request, Sample
from posttrain.models.chat import end_token_ids, load_tokenizer
from posttrain.models.files import context_length
from posttrain.rows import FinishReason
from posttrain.sampling.openai_client import Client, Question, Unusable, shown
from posttrain.sampling.openai_models import alone, find_model, load_weights, parse_answer
from posttrain.sampling.prompts import render_requests
from posttrain.sampling.vllm_requests import Output, num_asked, to_samples, vllm_params
from posttrain.settings.engines import OpenAIEngineSettings

# A server takes what a request leaves open from the model's generation_config.json.
PLAIN_SAMPLING = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class _Logprobs(BaseModel):
    token_logprobs: tuple[float, ...]


class _Choice(BaseModel):
    index: int
    finish_reason: FinishReason
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


class OpenAIEngine:
    """A model that somebody else's server holds."""

    def __init__(
        self, model_folder: Path, settings: OpenAIEngineSettings, template: Path | None = None
    ) -> None:
        """Find the model there, and load the folder's weights where `reload` says so.

        Args:
            model_folder: the Hugging Face model folder that the server must answer with.
            settings: the server, and patience with it.
            template: chat template in place of the tokenizer's own.

        Raises:
            BadInput: no usable tokenizer, no key, or the server answers with another model.
            StepFailed: the server does not answer, or could not load the weights.
        """
        self._settings, self._template = settings, template
        self._client = Client(settings)
        with ExitStack() as held:
            if settings.reload:
                held.enter_context(alone(self._client.url))
            self.reload(model_folder)
            # Kept until `close`: others would load other weights.
            self._held = held.pop_all()

    def generate(self, requests: list[Request]) -> list[list[Sample]]:
        """One list of n samples per request, in the requests' order.

        Raises:
            BadInput: too long a prompt, or the server cannot do what a request asks for.
            StepFailed: the server stopped answering.
        """
        prompts = render_requests(self._tokenizer, requests, self._context)
        return self._client.ask(
            [
                Question(
                    f"request {request.id}",
                    "POST",
                    "/completions",
                    self._body(request, prompt),
                    partial(self._samples, request),
                )
                for request, prompt in zip(requests, prompts, strict=True)
            ]
        )

    def reload(self, model_folder: Path) -> None:
        """Make sure that the server answers with a folder's weights; load them if it may.

        Raises:
            BadInput: no usable tokenizer, or the server answers with another model.
            StepFailed: the server does not answer, or could not load the weights.
        """
        self._tokenizer = load_tokenizer(model_folder, self._template)
        self._ends = sorted(end_token_ids(self._tokenizer))
        served = find_model(self._client, self._settings, model_folder)
        if self._settings.reload:
            load_weights(self._client, model_folder)
        self._model, self._model_folder = served.id, model_folder
        own = (context_length(model_folder), served.max_model_len, self._settings.max_model_len)
        self._context = min(limit for limit in own if limit is not None)

    def restart(self) -> None:
        """Find the model again: a server that was started anew may be used again.

        Raises:
            BadInput: it answers with another model now.
            StepFailed: it does not answer.
        """
        self.reload(self._model_folder)

    def close(self) -> None:
        """Let other processes load other weights. The server stays as it is."""
        self._held.close()

    def _body(self, request: Request, prompt: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": prompt,
            "return_token_ids": True,
            **PLAIN_SAMPLING,
            **vllm_params(self._tokenizer, request, self._ends),
        }

    def _samples(self, request: Request, content: bytes) -> list[Sample]:
        choices = sorted(parse_answer(_Completion, content).choices, key=lambda one: one.index)
        expected = num_asked(request)
        if [one.index for one in choices] != list(range(expected)):
            raise Unusable(f"{len(choices)} responses in place of {expected}: {shown(content)}")
        outputs = [self._output(request, one) for one in choices]
        samples = to_samples(self._tokenizer, request, outputs)
        for sample in samples:
            # A server that does not know a field ignores it.
            if not _fits(request, sample):
                raise BadInput(
                    f"{self._client.url} answered request {request.id}, which is bound to choices "
                    f"or a schema, with {sample.text[:40]!r}; the server must support "
                    "structured_outputs (vLLM 0.11 or newer)"
                )
        return samples

    def _output(self, request: Request, one: _Choice) -> Output:
        ids = one.token_ids
        if ids is None:
            raise BadInput(
                f"{self._client.url} answered request {request.id} without token_ids; the server "
                "must support return_token_ids (vLLM 0.10 or newer)"
            )
        if one.finish_reason == "length" and len(ids) != request.max_tokens:
            raise BadInput(
                f"{self._client.url} cut request {request.id} at {len(ids)} of "
                f"{request.max_tokens} tokens; start vllm serve with --generation-config vllm"
            )
        ended = bool(ids) and ids[-1] in self._ends
        if one.finish_reason == "stop" and not request.stop and not ended:
            raise BadInput(
                f"{self._client.url} ended request {request.id} at token {ids[-1:]}, which ends no "
                "turn of this model; start vllm serve with --generation-config vllm"
            )
        logprobs = None if one.logprobs is None else one.logprobs.token_logprobs
        if request.logprobs and (logprobs is None or len(logprobs) != len(ids)):
            raise Unusable("not one log-probability for each token")
        return Output(ids, one.finish_reason, logprobs if request.logprobs else None)


def _fits(request: Request, sample: Sample) -> bool:
    """Whether a sample can be one of its choices, or JSON at least where a schema was given."""
    if request.choices:
        return sample.text in request.choices
    if request.json_schema is not None and sample.finish_reason == "stop" and not request.stop:
        try:
            json.loads(sample.text)
        except ValueError:
            return False
    return True
