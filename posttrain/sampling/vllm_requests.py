"""What vLLM is asked and what its answer says, the same in a worker of ours and over HTTP.

Knows vLLM's sampling parameters and turns token ids into samples. Knows no engine.

    vllm_params(tokenizer, request, ends)   # {"n": 4, "seed": 7, "temperature": 1.0, …}
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from posttrain.generation import Request, Sample
from posttrain.rows import FinishReason
from posttrain.sampling.prompts import allowed_tokens, response_text


class Output(NamedTuple):
    """One response as vLLM gives it; its token ids include the end token."""

    token_ids: Sequence[int]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None


def num_asked(request: Request) -> int:
    """Responses to ask for: vLLM takes no n above 1 for greedy decoding, whose samples are equal"""
    return 1 if request.temperature == 0 else request.n


def vllm_params(
    tokenizer: PreTrainedTokenizerBase, request: Request, ends: Sequence[int]
) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams; sample i of n gets seed + i there as well.

    Args:
        tokenizer: the model's.
        request: what to ask.
        ends: tokens that end a response.

    Raises:
        BadInput: max_tokens would cut a choice.
    """
    params: dict[str, Any] = {
        "n": num_asked(request),
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


def to_samples(
    tokenizer: PreTrainedTokenizerBase, request: Request, outputs: Sequence[Output]
) -> list[Sample]:
    """The n samples of a request from the `num_asked` outputs."""
    samples = [
        Sample(
            text=response_text(tokenizer, one.token_ids, request.stop),
            token_ids=tuple(one.token_ids),
            finish_reason=one.finish_reason,
            logprobs=one.logprobs,
        )
        for one in outputs
    ]
    return samples * (request.n // num_asked(request))
