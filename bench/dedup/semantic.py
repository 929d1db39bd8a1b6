"""Semantic dedup beside semhash and the paper's clusters: time, memory, missed and wrong removals.

The same vectors for all: 384 numbers, rows of a topic at cosines of about .36 (with `--topics 0`
random directions, the hardest case for clusters), 12 % planted near-duplicates at cosines of .90 to
.995, a fifth of them of another duplicate, in the order of a random score. Each contestant is a
process of its own; what `exact` removes is the truth. semhash comes from an environment of its own.

    python -m bench.dedup.semantic --rows 100000 --semhash /path/to/venv/bin/python
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import write_result
from posttrain.dedup import exact, ivf, products, semantic_dedup

HERE = Path(__file__).parent
THRESHOLD, DIMENSION, SEED = 0.95, 384, 0
TOPIC_SHARE = 0.6
"""Cosine of a row and its topic."""
SEMHASH = """
import json, re, sys, time
import numpy as np
from semhash import SemHash
vectors = np.load(sys.argv[1])
records = [str(i) for i in range(len(vectors))]
begun = time.perf_counter()
found = SemHash.from_embeddings(vectors, records, None).self_deduplicate(float(sys.argv[2]))
seconds = time.perf_counter() - begun
kept = {int(one) for one in found.selected}
peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps([seconds, peak, [i for i in range(len(vectors)) if i not in kept]]))
"""
OURS: dict[str, dict[str, Any]] = {
    "exact": {"mode": "exact"},
    "exact, float32 alone": {"mode": "exact"},
    "ivf": {"mode": "ivf"},
    "ivf, 4 probes": {"mode": "ivf", "probes": 4},
    "clustered, one pass (the paper's)": {"mode": "clustered"},
    "clustered, 3 passes": {"mode": "clustered", "passes": 3},
}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--topics", type=int, default=1000)
    parser.add_argument("--semhash", type=Path, help="Interpreter that has semhash.")
    parser.add_argument("--only", help="Modes to run, by comma.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--vectors", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.vectors)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "vectors.npy"
        planted = write_vectors(path, options.rows, options.topics)
        names = options.only.split(",") if options.only else list(OURS)
        found: dict[str, dict[str, Any]] = {}
        gone: dict[str, set[int]] = {}
        for name in names:
            command = [sys.executable, "-m", "bench.dedup.semantic", "--one", name]
            runs = [ended([*command, "--vectors", str(path)]) for _ in range(options.repeats)]
            found[name], gone[name] = told(runs)
            print(name, found[name], flush=True)
        if options.semhash:
            script = str(Path(temporary) / "semhash_run.py")
            Path(script).write_text(SEMHASH)
            command = [str(options.semhash), script, str(path), str(THRESHOLD)]
            runs = [ended(command) for _ in range(options.repeats)]
            found["semhash 0.5.0"], gone["semhash 0.5.0"] = told(runs)
            print("semhash", found["semhash 0.5.0"], flush=True)
        rate = gemm_rate(torch.float32), gemm_rate(torch.bfloat16)
    for name, own in found.items():
        own["planted pairs found"] = round(np.isin(planted, list(gone[name])).mean(), 5)
        if "exact" in gone:
            own["missed"] = len(gone["exact"] - gone[name])
            own["wrong"] = len(gone[name] - gone["exact"])
        if "semhash 0.5.0" in found:
            own["of semhash's time"] = round(own["seconds"] / found["semhash 0.5.0"]["seconds"], 3)
    kept = options.rows - len(gone.get("exact", gone[names[0]]))
    flops = 2.0 * DIMENSION * options.rows * kept / 2
    limits = {
        name: round(flops / one / found[name]["seconds"], 3)
        for name, one in (("exact", rate[1]), ("exact, float32 alone", rate[0]))
        if name in found
    }
    write_result(
        HERE / f"semantic-{options.rows}{'' if options.topics else '-random'}.json",
        {
            "command": command("dedup.semantic", "--semhash"),
            "rows": options.rows,
            "topics": options.topics,
            "dimension": DIMENSION,
            "threshold": THRESHOLD,
            "seed": SEED,
            "gemm GFLOP/s, float32 and bfloat16": [round(one / 1e9) for one in rate],
            "share of GEMM's limit": limits,
            "found": found,
        },
    )


def write_vectors(path: Path, num_rows: int, num_topics: int) -> np.ndarray:
    """Vectors in their order, best first; the rows that are planted at a cosine of .955 or more."""
    rng = np.random.default_rng(SEED)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (num_rows, DIMENSION))
    num_base = round(num_rows / 1.12)
    topics = _unit(rng.standard_normal((max(1, num_topics), DIMENSION), dtype=np.float32))
    share = TOPIC_SHARE if num_topics else 0.0
    for start in range(0, num_rows, 65536):
        end = min(start + 65536, num_rows)
        part = _unit(rng.standard_normal((end - start, DIMENSION), dtype=np.float32))
        of_topic = topics[rng.integers(len(topics), size=end - start)]
        vectors[start:end] = _unit(share * of_topic + (1 - share**2) ** 0.5 * part)
    # A planted row comes after the one it copies, so which of the two goes is known.
    copies = np.sort(rng.choice(np.arange(1, num_rows), num_rows - num_base, replace=False))
    is_copy = np.zeros(num_rows, bool)
    is_copy[copies] = True
    cosines = rng.uniform(0.90, 0.995, len(copies)).astype(np.float32)
    chained = rng.random(len(copies)) < 0.2
    sure = []
    for number, (row, cosine) in enumerate(zip(copies, cosines, strict=True)):
        source = int(rng.integers(row))
        if chained[number] and number:
            source = int(copies[rng.integers(number)])
        noise = vectors[row] - (vectors[row] @ vectors[source]) * vectors[source]
        noise /= np.linalg.norm(noise)
        vectors[row] = cosine * vectors[source] + np.sqrt(1 - cosine**2) * noise
        if cosine >= THRESHOLD + 0.005 and not is_copy[source]:
            sure.append(row)
    vectors.flush()
    return np.array(sure)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def run_one(name: str, path: Path) -> list[Any]:
    """Seconds, peak resident KiB and the removed rows of one of ours."""
    if "float32" in name:
        for module in (exact, ivf, products):
            module.filter_dtype = lambda: torch.float32  # type: ignore[assignment]
    vectors = np.load(path, mmap_mode="r")
    semantic_dedup(np.eye(8, dtype=np.float32), range(8), 0.9)
    begun = time.perf_counter()
    removals = semantic_dedup(vectors, np.arange(len(vectors)), THRESHOLD, **OURS[name])
    seconds = time.perf_counter() - begun
    # Not getrusage: a process starts with the peak of the one that started it.
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return [seconds, int(found[1]), [one.row for one in removals]]


def ended(command: list[str]) -> list[Any]:
    """What a process prints last."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def told(runs: list[list[Any]]) -> tuple[dict[str, Any], set[int]]:
    """The fastest of some runs, and what it removed."""
    seconds, peak, removed = min(runs)
    shown = {"seconds": round(seconds, 2), "peak_mib": round(peak / 1024), "removed": len(removed)}
    return shown, set(removed)


def gemm_rate(dtype: torch.dtype) -> float:
    """Products and sums a second of one large matrix product, at the shape of a block."""
    left, right = (torch.randn(n, DIMENSION).to(dtype) for n in (1024, 8192))
    left @ right.T
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        left @ right.T
        times.append(time.perf_counter() - begun)
    return 2.0 * len(left) * len(right) * DIMENSION / float(np.median(times))


if __name__ == "__main__":
    main()
