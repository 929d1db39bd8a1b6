"""Tokens per second of our vLLM engine beside a bare `LLM.generate` and transformers' `generate`.

Everybody gets the same token ids and limits, each vLLM the same seeds. All take turns; the first
turn is not counted. Two shapes: lengths as the model ends its answers (their mean is at most half
of the cap), and a random model that hardly ever ends.

    python -m bench.sampling.engines --prompts 500 -k 16
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bench.machine import command, write_result
from bench.sampling.prompts import BASE, tiny_prompts
from posttrain.generation import Request
from posttrain.models.chat import end_token_ids, load_tokenizer
from posttrain.models.files import context_length
from posttrain.rows import stable_seed
from posttrain.sampling import vllm_engine, vllm_workers
from posttrain.sampling.prompts import render_requests
from posttrain.sampling.shards import generate_in_shards
from posttrain.sampling.vllm_requests import vllm_params
from posttrain.settings.engines import VllmEngineSettings

HERE = Path(__file__).parent
SETTINGS = VllmEngineSettings(type="vllm", dtype="bfloat16", cpu_kv_cache_gb=2)
SHARDS = 10
BATCHES = (256, 1024, 2048)
CAPS = {"natural": 48, "fixed": 32}

BARE = """
import json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    work = json.loads(open(sys.argv[1]).read())
    llm = LLM(**work["options"])
    prompts = [{"prompt_token_ids": ids} for ids in work["prompts"]]
    params = [SamplingParams(**one) for one in work["params"]]
    for line in sys.stdin:
        begun = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begun
        tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
        answers.write(json.dumps([seconds, tokens]) + chr(10))
        answers.flush()
"""

Contestant = Callable[[], tuple[float, int]]
"""Answers every request once: seconds and tokens."""


class Bare:
    """vLLM's own `LLM.generate` with the same requests, and without what our engine tunes."""

    def __init__(self, folder: Path, model: Path, requests: Sequence[Request]) -> None:
        tokenizer = load_tokenizer(model)
        ends = sorted(end_token_ids(tokenizer))
        options = {**vllm_engine._options(model, SETTINGS), **vllm_workers.CPU_OPTIONS}
        # Chunked prefill stays off: with it, requests' own seeds fail on a processor.
        del options["block_size"]
        work = {
            "options": options,
            "prompts": render_requests(tokenizer, requests, context_length(model)),
            "params": [vllm_params(tokenizer, one, ends) for one in requests],
        }
        folder.mkdir()
        (folder / "work.json").write_text(json.dumps(work))
        (folder / "bare.py").write_text(BARE)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(folder / "bare.py"), str(folder / "work.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **vllm_workers._environment(SETTINGS, 0)},
        )

    def __call__(self) -> tuple[float, int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        seconds, tokens = json.loads(self._process.stdout.readline())
        return seconds, tokens

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("-k", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = {
            shape: measure(Path(temporary) / shape, shape, options)
            for shape in ("natural", "fixed")
        }
    write_result(
        HERE / "engines.json",
        {"command": command("sampling.engines"), **found},
    )


def measure(folder: Path, shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of every contestant in one shape, and the ratios that are asked for."""
    folder.mkdir()
    model = BASE if shape == "natural" else never_ending(folder / "model")
    requests = [
        Request(
            id=prompt.id,
            messages=prompt.prompt,
            n=options.k,
            seed=stable_seed("bench", prompt.id),
            max_tokens=CAPS[shape],
            tools=prompt.tools or (),
        )
        for prompt in tiny_prompts(options.prompts, seed=0)
    ]
    bare = Bare(folder / "bare", model, requests)
    engines = {
        "our engine": vllm_engine.VllmEngine(model, SETTINGS),
        "our engine, two workers": vllm_engine.VllmEngine(
            model, SETTINGS.model_copy(update={"data_parallel_size": 2})
        ),
    }
    contestants: dict[str, Contestant] = {
        "bare vLLM": bare,
    }
    for name, engine in engines.items():
        contestants[name] = partial(at_once, engine, requests)
        contestants[f"{name}, in {SHARDS} shards"] = partial(in_shards, engine, requests, folder)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    for size in BATCHES:
        contestants[f"transformers generate, batch {size}"] = partial(
            transformers, loaded, model, requests, size
        )
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    mean_tokens = 0.0
    try:
        for turn in range(options.repeats + 1):
            for name, contestant in contestants.items():
                seconds, tokens = contestant()
                mean_tokens = tokens / (len(requests) * options.k)
                if turn:
                    rates[name].append(tokens / seconds)
                print(shape, turn, name, round(tokens / seconds), flush=True)
    finally:
        bare.close()
        for engine in engines.values():
            engine.close()
    medians = {name: statistics.median(own) for name, own in rates.items()}
    best = max(value for name, value in medians.items() if name.startswith("transformers"))
    ours = {name: value for name, value in medians.items() if name.startswith("our")}
    return {
        "cap": CAPS[shape],
        "mean_tokens": round(mean_tokens, 1),
        "tokens_per_second": {name: round(value) for name, value in medians.items()},
        "of bare vLLM": {k: round(v / medians["bare vLLM"], 2) for k, v in ours.items()},
        "of transformers' best": {k: round(v / best, 2) for k, v in ours.items()},
    }


def never_ending(folder: Path) -> Path:
    """A random model of the tiny base's shape: of 512 tokens hardly one in a hundred ends it."""
    shutil.copytree(BASE, folder)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig.from_pretrained(BASE))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def at_once(engine: vllm_engine.VllmEngine, requests: list[Request]) -> tuple[float, int]:
    """All requests in one call."""
    begun = time.perf_counter()
    answers = engine.generate(requests)
    return time.perf_counter() - begun, sum(len(s.token_ids) for one in answers for s in one)


def in_shards(
    engine: vllm_engine.VllmEngine, requests: list[Request], folder: Path
) -> tuple[float, int]:
    """As the sampling step does: shards that are written, synced and read again."""
    shards, size = folder / "shards", -(-len(requests) // SHARDS)
    begun = time.perf_counter()
    pairs = generate_in_shards(engine, requests, size, shards, lambda done, total: None)
    tokens = sum(len(sample.token_ids) for _, samples in pairs for sample in samples)
    seconds = time.perf_counter() - begun
    shutil.rmtree(shards)
    return seconds, tokens


def transformers(
    model: Any, folder: Path, requests: Sequence[Request], size: int
) -> tuple[float, int]:
    """Transformers' own `generate`: sorted by length, padded left, K sequences a prompt."""
    tokenizer = load_tokenizer(folder)
    ends = sorted(end_token_ids(tokenizer))
    prompts = sorted(render_requests(tokenizer, requests, context_length(folder)), key=len)
    first, pad, tokens = requests[0], tokenizer.pad_token_id, 0
    each = max(1, size // first.n)
    begun = time.perf_counter()
    for start in range(0, len(prompts), each):
        part = prompts[start : start + each]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(one)) + one for one in part])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in part])
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=first.n,
                max_new_tokens=first.max_tokens,
                eos_token_id=ends,
                pad_token_id=pad,
            )[:, width:]
        tokens += int((made != pad).sum())
    return time.perf_counter() - begun, tokens


if __name__ == "__main__":
    main()
