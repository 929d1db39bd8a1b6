"""The average of three models beside mergekit's and a plain copy: time, memory, exactness.

Llama-shaped bfloat16 weights of random values. Each contestant is a process of its own, on the same
files, which lie in the page cache. mergekit (a linear merge, float32) comes from an environment of
its own. Exact means: each element is the float64 mean, rounded once.

    python -m bench.training.averaging --mergekit /path/to/venv/bin/python --repeats 3
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.machine import command, write_result
from posttrain.averaging import average_models
from posttrain.averaging.mean import round_once

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SIZES = {"150 MB": 2, "300 MB": 7, "600 MB": 17}
"""Layers that make a checkpoint about this large."""
HIDDEN, INNER, VOCABULARY = 1024, 2816, 32000
MERGEKIT = """
import json, sys, time
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
*members, out = sys.argv[1:]
config = MergeConfiguration.model_validate({
    "merge_method": "linear", "dtype": "float32", "out_dtype": "bfloat16",
    "models": [{"model": m, "parameters": {"weight": 1.0}} for m in members]})
begun = time.perf_counter()
run_merge(config, out, MergeOptions(quiet=True, copy_tokenizer=False, lazy_unpickle=True))
print(json.dumps([time.perf_counter() - begun, 0]))
"""


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mergekit", type=Path, help="Interpreter that has mergekit.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one)))
        return
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for label, layers in SIZES.items():
            folder = Path(temporary) / label.replace(" ", "")
            members = [write_model(folder / str(seed), layers, seed) for seed in range(3)]
            found[label] = measured(members, folder, options)
            print(label, found[label], flush=True)
    write_result(
        HERE / "averaging.json",
        {
            "command": command("training.averaging", "--mergekit"),
            "members": 3,
            "found": found,
        },
    )


def measured(members: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each contestant, side by side, and how exact it was."""
    out = folder / "ours"
    alone = [sys.executable, "-m", "bench.training.averaging", "--one"]
    ours = [ended([*alone, *map(str, [*members, out])]) for _ in range(options.repeats)]
    size = (members[0] / "model.safetensors").stat().st_size
    copies = [copied(members, folder / "copy") for _ in range(options.repeats)]
    result = {
        "MB": round(size / 1e6),
        "seconds": round(min(ours)[0], 2),
        "peak of anonymous memory, MiB": round(max(one[1] for one in ours) / 1024),
        "elements that are not the float64 mean rounded once": wrong_elements(members, out),
        "reading three and writing one by plain copies, seconds": round(min(copies), 2),
        "share of that bandwidth": round(min(copies) / min(ours)[0], 2),
    }
    if options.mergekit:
        script = folder / "mergekit_run.py"
        script.write_text(MERGEKIT)
        names = [*map(str, members), str(folder / "theirs")]
        theirs = [ended([str(options.mergekit), str(script), *names]) for _ in ours]
        result |= {
            "mergekit seconds": round(min(theirs)[0], 2),
            "of mergekit's time": round(min(ours)[0] / min(theirs)[0], 3),
            "elements of mergekit's that are not": wrong_elements(members, folder / "theirs"),
            **commands(members, folder, options),
        }
    return result


def commands(members: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both tools' whole commands, from the start of Python to its end."""
    parts = [{"model": str(member), "parameters": {"weight": 1.0}} for member in members]
    plan = {"merge_method": "linear", "dtype": "float32", "out_dtype": "bfloat16", "models": parts}
    (folder / "plan.yaml").write_text(json.dumps(plan))
    flags = ["--quiet", "--lazy-unpickle", "--no-copy-tokenizer"]
    merge = options.mergekit.parent / "mergekit-yaml"
    ours = [sys.executable, "-m", "posttrain", "average", *map(str, members), "--out"]
    times: dict[str, list[float]] = {"ours": [], "mergekit": []}
    for turn in range(options.repeats):
        out = {name: folder / f"{name}-command-{turn}" for name in times}
        theirs = [str(merge), str(folder / "plan.yaml"), str(out["mergekit"]), *flags]
        for name, words in (("ours", [*ours, str(out["ours"])]), ("mergekit", theirs)):
            begun = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
            times[name].append(time.perf_counter() - begun)
            shutil.rmtree(out[name])
    return {
        "whole commands, seconds": {name: round(min(own), 2) for name, own in times.items()},
        "of mergekit's whole command": round(min(times["ours"]) / min(times["mergekit"]), 3),
    }


def run_one(folders: list[Path]) -> list[float]:
    """Seconds of one average, and the peak of memory that is no mapped file, in KiB."""
    *members, out = folders
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], int(status.partition("RssAnon:")[2].split()[0]))

    before = int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])
    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    average_models(members, out)
    seconds = time.perf_counter() - begun
    stop.set()
    watcher.join()
    return [seconds, peak[0] - before]


def ended(words: list[str]) -> list[float]:
    """What a process prints last."""
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    result: list[float] = json.loads(done.stdout.splitlines()[-1])
    return result


def copied(members: list[Path], out: Path) -> float:
    """Seconds to read every member and to write as many bytes as one has."""
    begun = time.perf_counter()
    with out.open("wb", buffering=0) as target:
        for number, member in enumerate(members):
            with (member / "model.safetensors").open("rb", buffering=0) as source:
                while block := source.read(8 << 20):
                    if not number:
                        target.write(block)
    return time.perf_counter() - begun


def wrong_elements(members: list[Path], out: Path) -> int:
    """How many elements differ from the mean in float64, rounded once."""
    wrong = 0
    files = [safe_open(m / "model.safetensors", framework="pt") for m in members]  # type: ignore[no-untyped-call]
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, framework="pt") as own:  # type: ignore[no-untyped-call]
            for name in own.keys():  # noqa: SIM118
                total = sum(one.get_tensor(name).double() for one in files)
                mean = torch.empty(total.numel(), dtype=torch.bfloat16)
                exact = (total / len(files)).reshape(-1)
                round_once(exact, mean, torch.empty_like(exact))
                wrong += int((mean != own.get_tensor(name).reshape(-1)).sum())
    return wrong


def write_model(folder: Path, layers: int, seed: int) -> Path:
    """A Llama-shaped checkpoint of random weights, without a tokenizer."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN)}
    tensors |= {"lm_head.weight": random(VOCABULARY, HIDDEN), "model.norm.weight": random(HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{at}.self_attn.{name}.weight"] = random(HIDDEN, HIDDEN)
        for name in ("gate_proj", "up_proj"):
            tensors[f"{at}.mlp.{name}.weight"] = random(INNER, HIDDEN)
        tensors[f"{at}.mlp.down_proj.weight"] = random(HIDDEN, INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = random(HIDDEN)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
