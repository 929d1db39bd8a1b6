"""Times the commands that should answer at once: --help, and a rerun of a finished six-round plan.

Needs a finished run of the tiny plan (`make demo`).

    python -m bench.startup
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.machine import write_result

ROOT = Path(__file__).parent.parent
OUT = ROOT / "bench" / "results" / "startup.json"
RUNS = 7


def seconds(*words: str) -> list[float]:
    """Wall seconds of several runs of one command, after a warm-up."""
    times = []
    for _ in range(RUNS + 1):
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "posttrain", *words], cwd=ROOT, check=True, capture_output=True
        )
        times.append(time.monotonic() - begun)
    return sorted(round(t, 3) for t in times[1:])


def main() -> None:
    """Measure, print and write the result."""
    bare = [sys.executable, "-c", "pass"]
    starts = []
    for _ in range(RUNS):
        begun = time.monotonic()
        subprocess.run(bare, check=True)
        starts.append(time.monotonic() - begun)
    found = {
        "--help": seconds("--help"),
        "run --plan tiny, all done": seconds("run", "--plan", "tiny"),
        "plan 6 --plan tiny": seconds("plan", "6", "--plan", "tiny"),
    }
    write_result(
        OUT,
        {
            "command": "python -m bench.startup",
            "bare_interpreter_seconds": round(statistics.median(starts), 3),
            "median_seconds": {name: statistics.median(times) for name, times in found.items()},
            "all_seconds": found,
        },
    )


if __name__ == "__main__":
    main()
