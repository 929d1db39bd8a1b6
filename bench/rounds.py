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
from pathlib import Path
from typing import Any

from bench.kill import processes
from bench.machine import write_result

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Path(temporary) / "workspace"
        subprocess.run([sys.executable, "-m", "posttrain", "init", str(workspace)], check=True)
        words = ["--plan", "tiny", "--set", f"seed={options.seed}"]
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
    write_result(
        ROOT / "bench" / "results" / f"rounds-seed-{options.seed}.json",
        {
            "command": f"python -m bench.rounds --seed {options.seed}",
            "seed": options.seed,
            "seconds": round(seconds, 1),
            "peak_resident_mib_all_processes": peak[0] // 2**20,
            "median_seconds_of_5": at_once,
            "rounds": [_row(row) for row in json.loads(told)],
        },
    )


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
    """Keep the largest sum of resident memory of the command and all below it."""
    while process.poll() is None:
        now = processes()
        below = {process.pid}
        for _ in range(8):
            below |= {pid for pid, one in now.items() if one.parent in below}
        total = 0
        for pid in below:
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
            except OSError:
                continue
        peak[0] = max(peak[0], total)
        time.sleep(0.2)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    rates = row["rates"]
    return {
        "name": row["name"],
        "seconds": row["seconds"],
        "promoted": row["promoted"],
        **{
            f"{split} {mode}": round(rates[split][mode]["all"]["value"], 4)
            for split in ("dev", "test")
            for mode in ("sampled", "greedy")
        },
    }


if __name__ == "__main__":
    main()
