"""The process that holds vLLM: reads one JSON line a message, answers each with one JSON line.

Started by path by `posttrain.sampling.vllm_worker_process`, perhaps with another interpreter, so it
imports only the standard library and vLLM. Prompts come as token ids: it renders nothing.
Nothing else may write to the answers' pipe, so what vLLM prints goes to the log.

    {"do": "load", "options": {"model": "rounds/tiny/base"}, "cpu_options": {"enforce_eager": true}}
    {"do": "generate", "requests": [{"prompt": [1, 2], "params": {"n": 4, "seed": 7}}]}
    {"do": "reload", "model": "runs/tiny/round-1/policy"}
    {"do": "score", "prompts": [[1, 2]]}
"""

import importlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, TextIO


def main() -> None:
    """Answer messages until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    messages = _messages()
    first = next(messages)
    if importlib.util.find_spec("vllm") is None:
        _answer(answers, event="missing")
        return
    is_cpu = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    invalid = importlib.import_module("vllm.exceptions").VLLMValidationError
    extra = first["cpu_options"] if is_cpu else {}
    llm = importlib.import_module("vllm").LLM(**first["options"], **extra)
    # On a processor vLLM keeps packed copies of weights, and reloading leaves a tied output layer's
    # copy as it was: samples would mix two models.
    _answer(answers, event="ready", reloads=not is_cpu)
    for message in messages:
        if message["do"] == "reload":
            _reload(llm, message["model"])
            _answer(answers, event="ready", reloads=True)
            continue
        try:
            if message["do"] == "score":
                _answer(answers, event="scores", scores=_scores(llm, message["prompts"]))
                continue
            samples = _generate(llm, message["requests"])
        except (ValueError, invalid) as error:
            # A request that cannot be served. Some of the list may be queued already, so this
            # engine must not be used again.
            _answer(answers, event="refused", message=str(error))
            return
        _answer(answers, event="samples", samples=samples)


def _messages() -> Iterator[dict[str, Any]]:
    """Lines of the standard input. Its end stops the process, even while vLLM is at work."""
    queue: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            queue.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(queue.get())


def _answer(answers: TextIO, **fields: object) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


def _reload(llm: Any, model: str) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
    # vLLM keeps cached prompts of the old weights, which would silently spoil the new samples.
    if not llm.reset_prefix_cache():
        raise RuntimeError("vLLM could not empty its prefix cache after loading other weights")


def _generate(llm: Any, requests: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """One list of samples a request: token ids, how they ended, and log-probabilities."""
    sampling = importlib.import_module("vllm.sampling_params")
    prompts, params = [], []
    for request in requests:
        fields = dict(request["params"])
        bounds = fields.pop("structured_outputs", None)
        if bounds is not None:
            fields["structured_outputs"] = sampling.StructuredOutputsParams(**bounds)
        prompts.append({"prompt_token_ids": request["prompt"]})
        params.append(sampling.SamplingParams(**fields))
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [
        [_sample(one) for one in sorted(output.outputs, key=lambda one: one.index)]
        for output in outputs
    ]


def _scores(llm: Any, prompts: list[list[int]]) -> list[float]:
    """What the head of one label says of each prompt, as it is: no sigmoid on top."""
    params = importlib.import_module("vllm").PoolingParams(use_activation=False)
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.encode(inputs, pooling_params=params, pooling_task="classify", use_tqdm=False)
    return [output.outputs.data.item() for output in outputs]


def _sample(one: Any) -> dict[str, Any]:
    ids = list(one.token_ids)
    logprobs = None
    if one.logprobs is not None:
        logprobs = [place[token].logprob for place, token in zip(one.logprobs, ids, strict=True)]
    return {"token_ids": ids, "finish_reason": one.finish_reason, "logprobs": logprobs}


if __name__ == "__main__":
    main()
