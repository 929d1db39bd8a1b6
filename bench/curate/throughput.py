"""Rules, hashes, MinHash and decontamination, file to file on one core: MB of dialogs a second.

Dialogs of 1 kB on average, made of lines of the standard library's docstrings. Planted among them:
equal dialogs, dialogs with some words replaced, emoji and exclamation marks, and held-out prompts
inside longer texts; what was planted is counted in what was dropped. One process, bound to a core.

    python -m bench.curate.throughput --rows 100000
"""

import argparse
import ast
import json
import os
import random
import resource
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.machine import command, write_result
from posttrain.curate_files import curate_file
from posttrain.settings.data_options import CurateFileSettings

HERE = Path(__file__).parent
ORDERS = {
    "rules": ("clean",),
    "rules, hashes": ("clean", "exact_duplicates"),
    "rules, hashes, MinHash": ("clean", "exact_duplicates", "minhash"),
}
SEED, MEAN_BYTES, NUM_HELDOUT = 0, 1000, 1000
PLANTED = {"equal": 0.03, "copy": 0.03, "heldout": 0.005, "style": 0.05}
"""Share of the rows; each row is planted one thing at most."""


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        planted = write_files(folder, options.rows)
        size = (folder / "rows.jsonl").stat().st_size
        last = tuple(ORDERS.values())[-1]
        orders = {**ORDERS, "rules, hashes, MinHash, decontamination": last}
        for name, order in orders.items():
            runs = [
                measured(folder, order, "decontamination" in name) for _ in range(options.repeats)
            ]
            seconds, summary = min(runs, key=lambda run: run[0])
            found[name] = {"seconds": round(seconds, 2), "MB/s": round(size / 1e6 / seconds, 2)}
            print(name, found[name], flush=True)
        dropped = [json.loads(line) for line in (folder / "out/dropped.jsonl").open()]
    steps = {row["id"]: row["step"] for row in dropped}
    wanted = {"equal": "exact_duplicates", "copy": "minhash", "heldout": "decontaminate"}
    recall = {
        kind: sum(steps.get(own) == step for own in planted[kind]) / len(planted[kind])
        for kind, step in wanted.items()
    }
    write_result(
        HERE / "throughput.json",
        {
            "command": command("curate.throughput"),
            "rows": options.rows,
            "megabytes": round(size / 1e6, 1),
            "cores": 1,
            "seed": SEED,
            "found": found,
            "planted": {kind: len(ids) for kind, ids in planted.items()},
            "share of the planted rows dropped by the step that looks for them": recall,
            "kept": summary["kept"],
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        },
    )


def measured(
    folder: Path, order: tuple[str, ...], decontaminate: bool
) -> tuple[float, dict[str, Any]]:
    """Seconds from file to file, and the summary."""
    settings = CurateFileSettings(
        overrides=(f"order=[{', '.join((*order, 'decontaminate', 'mix'))}]",),
        heldout=(folder / "heldout.jsonl",) if decontaminate else (),
    )
    begun = time.perf_counter()
    summary = curate_file(settings, folder / "rows.jsonl", folder / "out")
    return time.perf_counter() - begun, summary


def write_files(folder: Path, num_rows: int) -> dict[str, list[str]]:
    """`rows.jsonl` and `heldout.jsonl`; ids of the planted rows by what was planted."""
    rng = random.Random(SEED)
    lines = docstring_lines()
    # Five words of a line at a time, so that no row holds thirteen of them by accident.
    heldout = [
        " ".join(" ".join(words(rng, lines, 5)) for _ in range(6)) for _ in range(NUM_HELDOUT)
    ]
    with (folder / "heldout.jsonl").open("w") as file:
        for number, text in enumerate(heldout):
            file.write(json.dumps({"id": f"h{number}", "prompt": text}) + "\n")
    planted: dict[str, list[str]] = {kind: [] for kind in PLANTED}
    earlier: list[list[str]] = []
    kinds = [*PLANTED, "plain"]
    weights = [*PLANTED.values(), 1 - sum(PLANTED.values())]
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(num_rows):
            kind = rng.choices(kinds, weights)[0] if len(earlier) >= 5 else "plain"
            turns = _turns(rng, lines, kind, earlier, heldout)
            own_id = f"r{number:07}"
            if kind != "plain":
                planted[kind].append(own_id)
            elif len(earlier) < 1000:
                earlier.append(turns)
            else:
                earlier[rng.randrange(1000)] = turns
            messages = [
                {"role": role, "content": text}
                for role, text in zip(("user", "assistant"), turns, strict=True)
            ]
            row = {"id": own_id, "messages": messages, "capability": "general", "score": -number}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return planted


def _turns(
    rng: random.Random,
    lines: list[str],
    kind: str,
    earlier: list[list[str]],
    heldout: list[str],
) -> list[str]:
    if kind == "equal":
        return list(rng.choice(earlier))
    if kind == "copy":
        # Four words of a long answer: a Jaccard similarity of .8 and more.
        asked, answer = max(rng.sample(earlier, 5), key=lambda turns: len(turns[1]))
        copied = answer.split(" ")
        for place in rng.sample(range(len(copied)), min(2, len(copied) // 60)):
            copied[place] = "other"
        return [asked, " ".join([*copied, "indeed"])]
    size = rng.lognormvariate(0.0, 0.5) * MEAN_BYTES / 1.25
    asked = " ".join(words(rng, lines, max(6, int(size / 40))))
    answer = "\n".join(rng.choice(lines) for _ in range(max(2, int(size / 58))))
    if kind == "heldout":
        asked = f"Please answer this: {rng.choice(heldout)} {asked}"
    if kind == "style":
        answer = f"Sure! {answer} \N{SPARKLES}\N{ROCKET} Great!! Done!! Write to a.b@example.org."
    return [asked, answer]


def words(rng: random.Random, lines: list[str], count: int) -> list[str]:
    """Some words of random lines."""
    found: list[str] = []
    while len(found) < count:
        found += rng.choice(lines).split()
    return found[:count]


def docstring_lines() -> list[str]:
    """Lines of prose of the standard library's docstrings, sorted."""
    found: set[str] = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for line in (ast.get_docstring(node) or "").splitlines():
                    if len(line.split()) >= 5:
                        found.add(line.strip())
    return sorted(found)


if __name__ == "__main__":
    main()
