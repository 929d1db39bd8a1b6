"""Runs the tiny plan and its variations for some seeds, and writes the comparison as a table.

A workspace that holds finished runs is gone on from; `--compare-only` runs nothing.

    python -m bench.ablations.measure --seeds 0,1,2 --workspace /tmp/ablations
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.machine import write_result

HERE = Path(__file__).parent


def main() -> None:
    """Measure, print and write `tiny.json` and `tiny.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--compare-only", action="store_true")
    options = parser.parse_args()
    if not options.workspace.exists():
        subprocess.run(
            [sys.executable, "-m", "posttrain", "init", str(options.workspace)], check=True
        )
    command = [sys.executable, "-m", "posttrain", "ablations", "--plan", "tiny"]
    command += ["--seeds", options.seeds]
    if not options.compare_only:
        subprocess.run(command, cwd=options.workspace, check=True)
    told = subprocess.run(
        [*command, "--compare-only", "--json"],
        cwd=options.workspace,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    result = json.loads(told)
    (HERE / "tiny.md").write_text("\n".join(table(result)) + "\n")
    write_result(
        HERE / "tiny.json",
        {"command": f"posttrain ablations --plan tiny --seeds {options.seeds}", **result},
    )


def table(result: dict[str, Any]) -> list[str]:
    """The comparison in Markdown, a variation a line."""
    shown = result["show"]
    lines = [
        "| variation | what it changes | seeds | sampled | difference | greedy | difference | "
        + " | ".join((*shown, "s"))
        + " |",
        "|---|---|---|---|---|---|---|" + "---|" * (len(shown) + 1),
    ]
    for place, row in enumerate(result["rows"]):
        cells = [row["name"], row["varies"] or "the plan itself", str(len(row["seeds"]))]
        for mode in ("sampled", "greedy"):
            gap = row[mode]["difference"]
            cells.append(f"{100 * row[mode]['rate']:.1f} %")
            cells.append(
                f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
                if place and gap
                else ""
            )
        cells += [f"{row['measures'][name]:.3f}" for name in shown]
        lines.append("| " + " | ".join((*cells, f"{row['seconds']:.0f}")) + " |")
    return lines


if __name__ == "__main__":
    main()
