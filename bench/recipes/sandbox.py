"""What the sandbox costs beside the bare interpreter, and how many short programs a second it runs.

python -m bench.recipes.sandbox --programs 400
"""

import argparse
import statistics
import subprocess
import time
from pathlib import Path

from bench.machine import command, write_result
from bench.recipes.attacks import ATTACKS, escapes
from posttrain.sandbox import Program, Sandbox, SandboxLimits, find_python
from posttrain.sandbox.bubblewrap import ENVIRONMENT


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=400)
    options = parser.parse_args()
    sandbox, python = Sandbox(), find_python(None)
    bare, boxed = [], []
    for number in range(100):
        source = f"print({number})"
        begun = time.perf_counter()
        # Inside there are no packages whose start-up files the interpreter would read; `site`
        # without them is all that is left of its own start.
        bare_source = f"import site; {source}"
        subprocess.run(
            [python, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", bare_source],
            check=True,
            capture_output=True,
            env=ENVIRONMENT | {"LD_LIBRARY_PATH": ""},
        )
        bare.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        assert sandbox.run(source).stdout == f"{number}\n"
        boxed.append(time.perf_counter() - begun)
    programs = [Program(f"print({number} * 2)") for number in range(1000, 1000 + options.programs)]
    begun = time.perf_counter()
    results = sandbox.run_many(programs)
    seconds = time.perf_counter() - begun
    assert all(result.ok for result in results)
    milliseconds = {
        "bare interpreter": 1000 * statistics.median(bare),
        "sandbox": 1000 * statistics.median(boxed),
    }
    write_result(
        Path(__file__).parent / "sandbox.json",
        {
            "command": command("recipes.sandbox"),
            "milliseconds": {name: round(value, 1) for name, value in milliseconds.items()},
            "overhead, milliseconds": round(
                milliseconds["sandbox"] - milliseconds["bare interpreter"], 1
            ),
            "programs a second": round(options.programs / seconds, 1),
            "attacks": len(ATTACKS),
            "escapes": escapes(Sandbox(SandboxLimits(seconds=1))),
        },
    )


if __name__ == "__main__":
    main()
