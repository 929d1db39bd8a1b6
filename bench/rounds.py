"""Runs the six rounds of the tiny plan in a fresh workspace, then what should answer at once.

Time, memory of all processes together, and the pass rates of each round.

    python -m bench.rounds --seed 0
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.kill import processes
from bench.machine import write_result
from posttrain.comparison import answers, difference, levels
from posttrain.controller import Run
from posttrain.judgments.simulated import people_from, simulate
from posttrain.recipes import StepHandle, open_recipes, verify_all
from posttrain.rows import Candidate, Prompt, Task
from posttrain.settings.annotation import SimulatedAnnotator
from posttrain.tables import json_lines, load_rows, read_json
from posttrain.workspace import Workspace, load_functions, load_recipe_settings

ROOT = Path(__file__).parent.parent
LEVEL = "pass_rate_level_"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", type=Path, help="Where to run and keep it; else nowhere.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = options.workspace or Path(temporary) / "workspace"
        if not workspace.exists():
            subprocess.run([sys.executable, "-m", "posttrain", "init", str(workspace)], check=True)
        name = f"tiny-seed-{options.seed}" if options.seed else "tiny"
        words = ["--plan", "tiny", "--set", f"seed={options.seed}", "--run", name]
        finished_before = (workspace / "runs" / name / "round-6" / "gate").is_dir()
        begun = time.monotonic()
        command = [sys.executable, "-m", "posttrain", "run", *words]
        process = subprocess.Popen(command, cwd=workspace)
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
        watcher.start()
        status = process.wait()
        seconds = time.monotonic() - begun
        watcher.join()
        assert status == 0
        at_once = {
            "posttrain --help": _median_seconds(workspace, ["--help"]),
            "posttrain run, all six rounds done": _median_seconds(workspace, ["run", *words]),
            "posttrain plan 6": _median_seconds(workspace, ["plan", "6", *words]),
        }
        told = subprocess.run(
            [sys.executable, "-m", "posttrain", "status", "--json", *words],
            cwd=workspace,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = Run.open(Workspace(workspace), "tiny", [f"seed={options.seed}"], name)
        rounds = [_row(row, found.plan.mix) for row in json.loads(told)]
        asked = _asked(found, rounds)
    write_result(
        ROOT / "bench" / "results" / f"rounds-seed-{options.seed}.json",
        {
            "command": f"python -m bench.rounds --seed {options.seed}",
            "seed": options.seed,
            # Of a run that was finished before, only the rates are measured here.
            "seconds": None if finished_before else round(seconds, 1),
            "peak_mib_all_processes": None if finished_before else peak[0] // 2**20,
            "median_seconds_of_5": at_once,
            "asked": asked,
            "rounds": rounds,
        },
    )


def _asked(run: Run, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the tiny world is held to, by name."""
    base, second, last = rows[0], rows[3], rows[-1]
    result: dict[str, Any] = {}
    for mode in ("sampled", "greedy"):
        gain = last[f"test {mode}"] - base[f"test {mode}"]
        late = last[f"test {mode}"] - second[f"test {mode}"]
        result[f"gain of test {mode}, base to round 6"] = round(gain, 4)
        result[f"share of it after round 2, {mode}"] = round(late / gain, 3)
    drops = [a["test sampled"] - b["test sampled"] for a, b in pairwise(rows)]
    result["largest drop of test sampled from one model to the next"] = round(max(drops), 4)
    result["rounds promoted"] = sum(row["promoted"] is True for row in rows[2:])
    first, newest = (
        answers(run.folder.root / f"round-{n}/measure", "test", "sampled") for n in (1, 6)
    )
    hardest = max(levels(newest))
    gap = difference([(first, newest)], run.plan.mix, 0.95, hardest)
    assert gap is not None
    result[f"test sampled on level {hardest}, round 6 minus round 1"] = {
        key: round(value, 4) for key, value in vars(gap).items()
    }
    result["reward model, dev and test pairs together"] = {
        f"round {n}": _reward(run, n) for n in range(1, 7)
    }
    result["wrong labels among the training pairs' tasks"] = _flipped(run)
    return result


def _reward(run: Run, number: int) -> dict[str, Any]:
    """Accuracy by strength, pooled over dev and test."""
    accuracy = read_json(run.folder.root / f"round-{number}/measure-rm/accuracy.json")
    pooled: dict[str, Any] = {}
    for name in accuracy["test"]:
        rates = [split[name] for split in accuracy.values() if name in split]
        num = sum(rate["num"] for rate in rates)
        pooled[name] = {
            "value": round(sum(rate["value"] * rate["num"] for rate in rates) / num, 4),
            "num": num,
        }
    return pooled


def _flipped(run: Run) -> dict[str, float]:
    """Share of judgments, ties aside, that the simulated people would not give without noise."""
    plan = run.plan
    assert isinstance(plan.annotator, SimulatedAnnotator)
    quiet = plan.annotator.model_copy(update={"flip": 0.0})
    people = people_from(load_functions(run.workspace.find(plan.annotator.rules)), quiet)
    recipes = open_recipes(
        run.workspace,
        {name: load_recipe_settings(run.workspace, name, plan.recipes[name]) for name in plan.mix},
    )
    handle = StepHandle(plan.resources.sandbox, plan.seed)
    wrong, total = 0, 0
    for number in range(1, 7):
        tasks = load_rows(run.folder.root / f"round-{number - 1}/tasks/tasks.jsonl", Task)
        given = {
            (row["task"], row["annotator"]): row["choice"]
            for row in json_lines(run.folder.root / f"round-{number}/preferences/judgments.jsonl")
        }

        def passed(pairs: Sequence[tuple[Candidate, Prompt]]) -> list[bool]:
            verdicts = verify_all(recipes, pairs, handle, plan.resources.sandbox_workers)
            return [verdict is not None and verdict.passed for verdict in verdicts]

        for judgment in simulate(tasks, people, passed, plan.seed):
            if judgment.choice != "tie":
                total += 1
                wrong += given[judgment.task, judgment.annotator] != judgment.choice
    return {"share": round(wrong / total, 4), "judgments": total}


def _median_seconds(workspace: Path, words: list[str]) -> float:
    """Median wall seconds of five runs of a command that should answer at once."""
    times = []
    for _ in range(5):
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "posttrain", *words],
            cwd=workspace,
            check=True,
            capture_output=True,
        )
        times.append(time.monotonic() - begun)
    return round(statistics.median(times), 3)


def _watch(process: "subprocess.Popen[bytes]", peak: list[int]) -> None:
    """Keep the largest sum of memory of the command and all below it, in bytes.

    A page that several processes share counts once: a process that was just forked has no memory
    of its own yet.
    """
    while process.poll() is None:
        now = processes()
        below = {process.pid}
        for _ in range(8):
            below |= {pid for pid, one in now.items() if one.parent in below}
        total = 0
        for pid in below:
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            shares = [line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")]
            total += 1024 * sum(map(int, shares))
        peak[0] = max(peak[0], total)
        time.sleep(0.2)


def _row(row: dict[str, Any], mix: Mapping[str, float]) -> dict[str, Any]:
    """What a model passes; by level: sampled, weighted by the mix."""
    rates, test = row["rates"], row["rates"]["test"]
    measures = test["sampled"]["measures"]
    levels = sorted({key for one in measures.values() for key in one if key.startswith(LEVEL)})
    return {
        "name": row["name"],
        "seconds": row["seconds"],
        "promoted": row["promoted"],
        **{
            f"{split} {mode}": round(rates[split][mode]["all"]["value"], 4)
            for split in ("dev", "test")
            for mode in ("sampled", "greedy")
        },
        "test by capability": {
            name: {mode: round(test[mode][name]["value"], 4) for mode in ("sampled", "greedy")}
            for name in mix
        },
        "test by level": {
            key.removeprefix(LEVEL): round(_weighted(measures, key, mix), 4) for key in levels
        },
        # A system prompt may ask for it there.
        "filler outside steerability": round(
            _weighted(
                {name: one for name, one in measures.items() if name != "steerability"},
                "filler_share",
                mix,
            ),
            4,
        ),
    }


def _weighted(
    measures: Mapping[str, Mapping[str, float]], key: str, mix: Mapping[str, float]
) -> float:
    """The mean over capabilities that have a measure, weighted by their shares."""
    shares = {name: mix[name] for name, one in measures.items() if key in one}
    return sum(share * measures[name][key] for name, share in shares.items()) / sum(shares.values())


if __name__ == "__main__":
    main()
