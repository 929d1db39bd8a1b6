"""Figures of the report as small SVG texts: plain numbers in, one panel a figure out.

Knows colours, axes and matplotlib; knows no run and no file. Words stand in the page, not in the
figures, so that a figure stays small and a name from a plug-in never gets near the SVG. The same
numbers give the same bytes.

    panels = pass_rates({-1: base_rates, 0: bootstrap_rates, 1: rates})
    svg = draw(panels[0], ticks=range(-1, 7), name="pass-rate-0")
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, isfinite, nan
from typing import Any, NamedTuple

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.typing import RcKeyType

from posttrain.reward_measures import LENGTH_DIFFERENCES
from posttrain.rows import Strength

BASE = -1
"""The base stands before the bootstrap, which is round 0."""
DEV, TEST, BASELINE = "#0072b2", "#d55e00", "#767676"
"""Okabe and Ito's blue and vermilion, which colour-blind readers tell apart, and a grey."""
_BEFORE = "#767676"
_LINES = ("-", "--", ":", "-.")
_SPLITS = (("dev", DEV, "-"), ("test", TEST, "--"))
_INCHES = (4.0, 2.3)
_NUM_TICKS = 12
_MAX_POINTS = 30
"""Points of a training curve; a longer one is shown by the means of equal parts."""
_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "path.simplify": True,
}


class Point(NamedTuple):
    """One value of a series, with its interval where it has one."""

    x: float
    """Round (`BASE`, 0 the bootstrap, 1, ...), or optimizer step."""
    value: float
    low: float | None = None
    high: float | None = None
    num: int | None = None
    """Prompts or pairs behind it."""


class Series(NamedTuple):
    """One line."""

    label: str
    points: tuple[Point, ...]
    colour: str
    line: str = "-"
    """matplotlib's name of the line style."""


class Panel(NamedTuple):
    """One figure with its title, which the page writes."""

    title: str
    series: tuple[Series, ...]
    kind: str = "number"
    """`rate`: percent from 0 to 100; `number`: from 0 where nothing is negative; `curve`: over
    optimizer steps, as close as the values lie."""


def round_label(number: int) -> str:
    """Short name of a round on an axis or in a table's head."""
    return {BASE: "base", 0: "boot"}.get(number, str(number))


def pass_rates(rates: Mapping[int, Mapping[str, Any]]) -> list[Panel]:
    """One panel for all prompts and for each capability: sampled, dev and test."""
    found = {name for one in rates.values() for name, rate in _sampled(one) if "low" in rate}
    names = sorted(found, key=lambda name: (name != "all", name))
    return [
        Panel(
            "all, by mix" if name == "all" else name,
            _by_split({n: _pick(one, "sampled", name) for n, one in rates.items()}),
            "rate",
        )
        for name in names
    ]


def measures(rates: Mapping[int, Mapping[str, Any]]) -> list[Panel]:
    """One panel for each named measure of each recipe: sampled, dev and test."""
    places = sorted(
        {
            (capability, name)
            for one in rates.values()
            for split in one.values()
            for capability, named in split["sampled"]["measures"].items()
            for name in named
        }
    )
    return [
        Panel(
            f"{capability}: {name}",
            _by_split(
                {n: _pick(one, "sampled", "measures", capability, name) for n, one in rates.items()}
            ),
        )
        for capability, name in places
    ]


def lengths(rates: Mapping[int, Mapping[str, Any]]) -> list[Panel]:
    """Mean length, and the share of responses that end by themselves."""
    return [
        Panel(
            title,
            _by_split({n: _pick(one, "sampled", "lengths", key) for n, one in rates.items()}),
            kind,
        )
        for title, key, kind in (
            ("mean length, tokens", "mean_tokens", "number"),
            ("share that ends with EOS", "eos_share", "rate"),
        )
    ]


def reward_accuracy(accuracy: Mapping[int, Mapping[str, Any]]) -> list[Panel]:
    """One panel for all held-out pairs, beside the longer response as a guess, and one a strength.

    Args:
        accuracy: round → split → strength, `all` or `longer wins` → rate.
    """
    found = {name for one in accuracy.values() for split in one.values() for name in split}
    strengths = sorted((s for s in Strength if str(s) in found), key=lambda s: s.level)

    def series(name: str) -> tuple[Series, ...]:
        return _by_split({n: {s: one[s].get(name) for s in one} for n, one in accuracy.items()})

    guess = _longer_wins(series("longer wins"))
    panels = [Panel("all pairs", series("all") + guess, "rate")] if found else []
    return panels + [Panel(str(s), series(str(s)), "rate") for s in strengths]


def reward_groups(measures: Mapping[int, Mapping[str, Any]], grouping: str) -> list[Panel]:
    """The reward model's accuracy in each group of pairs, beside the longer response as a guess.

    Args:
        measures: round → split → `posttrain.reward_measures`.
        grouping: `capability`, `source` or `length_difference`.
    """
    found = {
        name for one in measures.values() for split in one.values() for name in split[grouping]
    }
    order = list(LENGTH_DIFFERENCES)
    names = sorted(found, key=lambda name: (order.index(name) if name in order else -1, name))

    def series(name: str, rate: str) -> tuple[Series, ...]:
        return _by_split({n: _pick(one, grouping, name, rate) for n, one in measures.items()})

    return [
        Panel(name, series(name, "accuracy") + _longer_wins(series(name, "longer_wins")), "rate")
        for name in names
    ]


def reward_trust(measures: Mapping[int, Mapping[str, Any]]) -> list[Panel]:
    """Calibration error, and the correlation of reward with length.

    Args:
        measures: round → split → `posttrain.reward_measures`.
    """
    return [
        Panel(title, _by_split({n: _pick(one, *keys) for n, one in measures.items()}))
        for title, *keys in (
            ("calibration error (ECE)", "calibration", "ece"),
            ("reward and length, two responses of a prompt", "length_correlation", "pairs"),
            ("reward and length, all responses", "length_correlation", "responses"),
        )
        if measures
    ]


def curves(
    title: str,
    column: str,
    logs: Mapping[int, Mapping[str, Sequence[Mapping[str, Any]]]],
    last: int,
) -> Panel | None:
    """One logged column over the optimizer steps of every round and variant.

    Args:
        title: what the page writes above it.
        column: name in metrics.jsonl.
        logs: round → variant → entries, one a step; the bootstrap's variant has no name.
        last: number of the plan's last round, for the colours.

    Returns:
        The panel, or None where nothing was logged under that name.
    """
    variants = sorted({name for one in logs.values() for name in one if name})
    series = []
    for number, by_variant in sorted(logs.items()):
        for name, entries in sorted(by_variant.items()):
            points = [Point(e["step"], float(e[column])) for e in entries if column in e]
            if points:
                line = _LINES[variants.index(name) % len(_LINES)] if name else "-"
                colour = round_colour(number, last)
                series.append(Series(name, _thinned(points), colour, line))
    return Panel(title, tuple(series), "curve") if series else None


def round_colour(number: int, last: int) -> str:
    """Dark for the first round, light for the last; grey before the rounds."""
    if number < 1:
        return _BEFORE
    return to_hex(colormaps["plasma"](0.82 * (number - 1) / max(1, last - 1)))


def numbers(panels: Iterable[Panel], ticks: Sequence[int]) -> list[dict[str, Any]]:
    """What the panels show as rows of text: the page's tables behind the figures."""
    rows = []
    for panel in panels:
        for series in panel.series:
            at = {int(point.x): point for point in series.points}
            cells = [_cell(at[tick], panel.kind) if tick in at else ("", "") for tick in ticks]
            rows.append({"title": panel.title, "label": series.label, "cells": cells})
    return rows


def draw(panel: Panel, ticks: Sequence[int], name: str) -> str:
    """The panel as an `<svg>` element without any text but numbers.

    Args:
        panel: what to draw.
        ticks: rounds on the axis, those without a value included; unused by a `curve`.
        name: unique in the page, so that no two figures share an id.
    """
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(length=2, width=0.6, colors="#444444")
        if panel.kind == "curve":
            _draw_curves(axes, panel)
        else:
            _draw_rounds(axes, panel, ticks)
        text = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=metadata)
    svg = text.getvalue()
    # Group names repeat from figure to figure, and nothing refers to them.
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg[svg.index("<svg") :])
    # A style inside an inline SVG would hold for the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', svg)
    return re.sub(r"\n\s*", "\n", svg)


def _draw_rounds(axes: Axes, panel: Panel, ticks: Sequence[int]) -> None:
    for index, series in enumerate(panel.series):
        # Side by side, else one interval hides the other.
        shift = 0.12 * (index - (len(panel.series) - 1) / 2)
        at = {int(point.x): point for point in series.points}
        absent = Point(0, nan)
        points = [at.get(tick, absent) for tick in ticks]
        axes.plot(
            [tick + shift for tick in ticks],
            [point.value for point in points],
            color=series.colour,
            linestyle=series.line,
            linewidth=1.4,
            marker="o",
            markersize=3,
        )
        bounds = [(p.x + shift, p.low, p.high) for p in series.points if p.low is not None]
        if bounds:
            where, low, high = zip(*bounds, strict=True)
            axes.vlines(where, low, high, colors=series.colour, linewidth=0.9, alpha=0.7)
    every = ceil(len(ticks) / _NUM_TICKS)
    axes.set_xticks(ticks[::every], [round_label(tick) for tick in ticks[::every]])
    axes.set_xlim(ticks[0] - 0.4, ticks[-1] + 0.4)
    values = [point.value for series in panel.series for point in series.points]
    if panel.kind == "rate":
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    elif values and min(values) >= 0:
        axes.set_ylim(0, 1.1 * max(values) or 1.0)


def _draw_curves(axes: Axes, panel: Panel) -> None:
    for series in panel.series:
        axes.plot(
            [point.x for point in series.points],
            [point.value for point in series.points],
            color=series.colour,
            linestyle=series.line,
            linewidth=1.1,
        )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    size = ceil(len(points) / _MAX_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple(
        Point(part[-1].x, sum(point.value for point in part) / len(part)) for part in parts
    )


def _sampled(rates: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return ((name, rate) for split in rates.values() for name, rate in split["sampled"].items())


def _pick(rates: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Split → what stands under the keys, None where nothing does."""
    found = {}
    for split, value in rates.items():
        for key in keys:
            value = value.get(key) if value is not None else None
        found[split] = value
    return found


def _by_split(values: Mapping[int, Mapping[str, Any]]) -> tuple[Series, ...]:
    """Round → split → a rate or a number, as one series a split."""
    series = []
    for split, colour, line in _SPLITS:
        points = [
            Point(n, **v) if isinstance(v, Mapping) else Point(n, v)
            for n, one in sorted(values.items())
            if (v := one.get(split)) is not None
        ]
        # A plug-in's measure may be no number where it has nothing to measure.
        finite = tuple(point for point in points if isfinite(point.value))
        series.append(Series(split, finite, colour, line))
    return tuple(series)


def _longer_wins(series: Iterable[Series]) -> tuple[Series, ...]:
    return tuple(one._replace(label=f"{one.label}, longer wins", colour=BASELINE) for one in series)


def _cell(point: Point, kind: str) -> tuple[str, str]:
    """A value and its interval as text."""
    if kind != "rate":
        return f"{point.value:.4g}", ""
    value = f"{100 * point.value:.1f} %"
    if point.low is None or point.high is None:
        return value, ""
    return value, f"{100 * point.low:.1f}–{100 * point.high:.1f}, n {point.num}"
