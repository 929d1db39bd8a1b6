"""Draws the README's picture: pass rates of the tiny plan over rounds, for every measured seed.

Reads `bench/results/rounds-seed-*.json`, which `bench.rounds` writes.

    python -m bench.picture
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "rounds.svg"
COLOURS = {"greedy": "#0072b2", "sampled": "#d55e00"}
SHORT = {"bootstrap": "boot"}
LABELS = {"greedy": "greedy", "sampled": "sampled at temperature 1"}


def main() -> None:
    """Write docs/rounds.svg and print the README's table."""
    paths = sorted((ROOT / "bench" / "results").glob("rounds-seed-*.json"))
    seeds = [json.loads(path.read_text())["rounds"] for path in paths]
    with rc_context({"svg.hashsalt": "rounds", "svg.fonttype": "path", "font.size": 10.0}):
        figure = Figure(figsize=(8.4, 3.5), layout="constrained", facecolor="white")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, split in zip(panels, ("dev", "test"), strict=True):
            _draw(axes, seeds, split)
        figure.suptitle("Tiny world: simulated people, a model of 0.9 M parameters", fontsize=10)
        panels[0].set_ylabel("held-out prompts passed")
        panels[0].legend(frameon=False, loc="lower right")
        figure.savefig(OUT, metadata={"Date": None})
    for line in table(seeds):
        print(line)


def table(seeds: list[list[dict[str, Any]]]) -> list[str]:
    """The README's table: means over seeds, with their range where there are several."""
    columns = [(split, mode) for split in ("dev", "test") for mode in ("sampled", "greedy")]
    lines = [
        "| model | dev, T = 1 | dev, greedy | test, T = 1 | test, greedy | promoted |",
        "|---|---|---|---|---|---|",
    ]
    for rows in zip(*seeds, strict=True):
        cells = [rows[0]["name"]]
        for split, mode in columns:
            values = [100 * row[f"{split} {mode}"] for row in rows]
            spread = f" ({min(values):.0f}–{max(values):.0f})" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.1f} %{spread}")
        promoted = sum(row["promoted"] is True for row in rows)
        cells.append(f"{promoted} of {len(rows)}" if rows[0]["promoted"] is not None else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _draw(axes: Any, seeds: list[list[dict[str, Any]]], split: str) -> None:
    names = [row["name"] for row in seeds[0]]
    ticks = range(len(names))
    for mode, colour in COLOURS.items():
        values = [[row[f"{split} {mode}"] for row in rounds] for rounds in seeds]
        for one in values:
            axes.plot(ticks, one, color=colour, linewidth=0.8, alpha=0.45)
        mean = [fmean(column) for column in zip(*values, strict=True)]
        axes.plot(ticks, mean, color=colour, linewidth=2.2, marker="o", label=LABELS[mode])
        for place in (0, len(names) - 1):
            axes.annotate(
                f"{100 * mean[place]:.0f} %",
                (place, mean[place]),
                xytext=(0, 7 if mode == "greedy" else -15),
                textcoords="offset points",
                ha="center",
                color=colour,
            )
    axes.set_title(f"{split}{', only reported' if split == 'test' else ', what gates look at'}")
    axes.set_xticks(ticks, [SHORT.get(name, name.removeprefix("round ")) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel("model of round")
    axes.set_ylim(0.2, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
