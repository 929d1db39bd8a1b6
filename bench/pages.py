"""Writes what the pages state of measured runs of the tiny plan: the README's picture and table,
and the tables of rounds/tiny/README.md.

Reads `bench/results/rounds-seed-*.json`, which `bench.rounds` writes, one of each seed. Text stands
between the lines `<!-- measured -->` and `<!-- end -->` of a page.

    python -m bench.pages
"""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "rounds.svg"
COLOURS = {"greedy": "#0072b2", "sampled": "#d55e00"}
SHORT = {"bootstrap": "boot"}
STRENGTHS = ("significantly better", "better", "slightly better", "marginally better")
WIDTH = 110
BEGIN, END = "<!-- measured -->", "<!-- end -->"
LABELS = {"greedy": "greedy", "sampled": "sampled at temperature 1"}


def main() -> None:
    """Write docs/rounds.svg, and the measured parts of both pages."""
    paths = sorted((ROOT / "bench" / "results").glob("rounds-seed-*.json"))
    results = [json.loads(path.read_text()) for path in paths]
    seeds = [one["rounds"] for one in results]
    with rc_context({"svg.hashsalt": "rounds", "svg.fonttype": "path", "font.size": 10.0}):
        figure = Figure(figsize=(8.4, 3.5), layout="constrained", facecolor="white")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, split in zip(panels, ("dev", "test"), strict=True):
            _draw(axes, seeds, split)
        figure.suptitle("Tiny world: simulated people, a model of 0.9 M parameters", fontsize=10)
        panels[0].set_ylabel("held-out prompts passed")
        panels[0].legend(frameon=False, loc="lower right")
        figure.savefig(OUT, metadata={"Date": None})
    machine = results[0]["machine"]
    place = f"{machine['cores']} shared cores of an {machine['processor']}"
    commit = " and ".join(dict.fromkeys(one["machine"]["commit"] for one in results))
    told = (
        f"Means over {len(seeds)} seeds and their range, `python -m bench.rounds --seed N` on "
        f"{place} at commit {commit}; choices look at dev, test is only reported."
    )
    replace_measured(ROOT / "README.md", [*table(seeds), "", *wrap(told, WIDTH)])
    replace_measured(
        ROOT / "rounds" / "tiny" / "README.md", tiny_page(results, f"{place} at commit {commit}")
    )


def replace_measured(page: Path, lines: Iterable[str]) -> None:
    """Put lines between the two marks of a page.

    Raises:
        ValueError: the page has not one of each mark.
    """
    before, between, after = page.read_text().partition(BEGIN)
    _, end, after = after.partition(END)
    if not between or not end:
        raise ValueError(f"{page}: no {BEGIN} with {END} after it")
    page.write_text("\n".join([before + BEGIN, *lines, END + after]))


def tiny_page(results: list[dict[str, Any]], place: str) -> list[str]:
    """What the tiny world's page says was measured: by capability, by level, and the promises."""
    seeds = [one["rounds"] for one in results]
    asked = [one["asked"] for one in results]
    names = list(seeds[0][0]["test by capability"])
    lines = wrap(
        f"Means over seeds {', '.join(str(one['seed']) for one in results)}, "
        f"`python -m bench.rounds --seed N` on {place}. Pass rate (%) on test prompts, sampled at "
        "temperature 1 (four responses a prompt) / greedy.",
        WIDTH,
    )
    lines += ["", "| | all | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines += ["|---" * (len(names) + 2) + "|"]
    for rows in zip(*seeds, strict=True):
        cells = [_mean(row["test sampled"] for row in rows) + " / "]
        cells[0] += _mean(row["test greedy"] for row in rows)
        for name in names:
            found = [row["test by capability"][name] for row in rows]
            cells.append(
                " / ".join(_mean(one[mode] for one in found) for mode in ("sampled", "greedy"))
            )
        lines.append(f"| {rows[0]['name']} | " + " | ".join(cells) + " |")
    levels = list(seeds[0][0]["test by level"])
    lines += ["", "By level, test, sampled, weighted by the mix (%):", ""]
    lines += ["| | " + " | ".join(levels) + " |", "|---" * (len(levels) + 1) + "|"]
    for rows in zip(*seeds, strict=True):
        cells = [_mean(row["test by level"][level] for row in rows) for level in levels]
        lines.append(f"| {rows[0]['name']} | " + " | ".join(cells) + " |")
    lines += ["", *wrap(_promises(seeds, asked), WIDTH), ""]
    lines += [
        "Reward model on held-out pairs of *better* and *significantly better*, dev and test",
        "together: accuracy (%) by seed, by strength over all seeds, beside how often the longer",
        "response is the better one.",
        "",
        "| round | seeds | significantly | better | slightly | marginally | longer wins |",
        "|---" * 7 + "|",
    ]
    for number in range(1, len(seeds[0]) - 1):
        found = [
            one["reward model, dev and test pairs together"][f"round {number}"] for one in asked
        ]
        trained = ", ".join(f"{100 * one['trained']['value']:.0f}" for one in found)
        cells = [_pooled(found, name) for name in STRENGTHS]
        longer = _pooled(found, "trained, longer wins")
        lines.append(f"| {number} | {trained} | " + " | ".join((*cells, longer)) + " |")
    return lines


def _promises(seeds: list[list[dict[str, Any]]], asked: list[dict[str, Any]]) -> str:
    """The figures that the tiny world is held to, a sentence each, by seed."""

    def each(key: str, shown: str = "{:.0f}", factor: float = 100) -> str:
        return ", ".join(shown.format(factor * one[key]) for one in asked)

    hardest = next(key for key in asked[0] if key.startswith("test sampled on level"))
    gaps = ", ".join(
        f"{100 * gap['value']:.0f} [{100 * gap['low']:.0f}, {100 * gap['high']:.0f}]"
        for gap in (one[hardest] for one in asked)
    )
    wrong = [one["wrong labels among the training pairs' tasks"]["share"] for one in asked]
    filler = ", ".join(
        f"{rows[0]['name']} {_mean(row['filler outside steerability'] for row in rows)}"
        for rows in zip(*seeds, strict=True)
    )
    return (
        "By seed: from the base to round 6 the pass rate on test rises by "
        f"{each('gain of test sampled, base to round 6')} points sampled and "
        f"{each('gain of test greedy, base to round 6')} greedy; of that, "
        f"{each('share of it after round 2, sampled')} % and "
        f"{each('share of it after round 2, greedy')} % come after round 2. "
        f"On level {hardest.split()[4].rstrip(',')} round 6 passes more than round 1 by {gaps} "
        "points (95 % intervals, paired by prompt). "
        f"{each('rounds promoted', '{:.0f}', 1)} of 6 rounds were promoted; from one model to the "
        "next test sampled fell at most by "
        f"{each('largest drop of test sampled from one model to the next', '{:.1f}')} points "
        f"(below 0: it always rose). {100 * min(wrong):.0f} to {100 * max(wrong):.0f} % of the "
        "people's labels are wrong, known answers among them. `sure!` opens so many of the sampled "
        f"test responses outside steering (%): {filler}."
    )


def _mean(values: Iterable[float]) -> str:
    """The mean over seeds, in percent."""
    return f"{100 * fmean(values):.0f}"


def _pooled(rounds: list[dict[str, Any]], name: str) -> str:
    num = sum(one[name]["num"] for one in rounds)
    return f"{100 * sum(one[name]['value'] * one[name]['num'] for one in rounds) / num:.0f}"


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
    values = {
        mode: [[row[f"{split} {mode}"] for row in rounds] for rounds in seeds] for mode in COLOURS
    }
    means = {
        mode: [fmean(column) for column in zip(*own, strict=True)] for mode, own in values.items()
    }
    for mode, colour in COLOURS.items():
        for one in values[mode]:
            axes.plot(ticks, one, color=colour, linewidth=0.8, alpha=0.45)
        mean = means[mode]
        axes.plot(ticks, mean, color=colour, linewidth=2.2, marker="o", label=LABELS[mode])
        others = [own for other, own in means.items() if other != mode]
        for place in (0, len(names) - 1):
            below = mean[place] < min(own[place] for own in others)
            axes.annotate(
                f"{100 * mean[place]:.0f} %",
                (place, mean[place]),
                xytext=(0, -15 if below else 7),
                textcoords="offset points",
                ha="center",
                color=colour,
            )
    axes.set_title(f"{split}{', only reported' if split == 'test' else ', what gates look at'}")
    axes.set_xticks(ticks, [SHORT.get(name, name.removeprefix("round ")) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel("model of round")
    axes.set_ylim(0.1, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
