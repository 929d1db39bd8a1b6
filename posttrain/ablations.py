"""Variations of a plan: which there are, and how each ends beside the plan itself.

A variation is a plan that `extends` another. Knows runs and comparisons; running them is the
command line's affair.

    found = collect(runs_of(workspace, "tiny", seeds=(0, 1, 2)))
    print_table(found)
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from posttrain.comparison import Answers, answers, difference, final_measure, levels, rate_of
from posttrain.controller import Run
from posttrain.errors import BadInput
from posttrain.statistics import Rate
from posttrain.tables import read_json, write_json
from posttrain.workspace import Workspace, load_plan, near, variations

FILE = "ablations.json"
"""In the folder of the plan's own run; the report shows it."""
_MODES = ("sampled", "greedy")


@dataclass(frozen=True)
class Variation:
    """A plan (the varied one itself first) with its runs, a seed each."""

    name: str
    varies: str
    runs: dict[int, Run]


def runs_of(
    workspace: Workspace,
    plan_name: str,
    seeds: Sequence[int] | None = None,
    only: Iterable[str] = (),
    overrides: Iterable[str] = (),
) -> list[Variation]:
    """The plan and its variations with a run for each seed; runs nothing.

    Without seeds the plan's own is used. A run with the plan's own seed lies in `runs/PLAN`, as
    after `posttrain run`; others in `runs/PLAN-seed-N`.

    Raises:
        BadInput: the plan has no variation, or none of a wanted name.
    """
    found = variations(workspace, plan_name)
    if not found:
        raise BadInput(
            f"rounds/{plan_name}.yaml has no variations: plans below rounds/ with the line "
            f"`extends: {plan_name}`"
        )
    short = {name.rpartition("/")[2]: name for name in found}
    wanted = list(only)
    for name in wanted:
        if name not in short and name not in found:
            raise BadInput(f"--only {name}: no such variation{near(name, [*short, *found])}")
    if wanted:
        found = [name for name in found if {name, name.rpartition("/")[2]} & set(wanted)]
    own = load_plan(workspace, plan_name).seed
    return [
        Variation(
            name,
            load_plan(workspace, name).varies,
            {seed: _run(workspace, name, seed, own, overrides) for seed in seeds or (own,)},
        )
        for name in (plan_name, *found)
    ]


def _run(workspace: Workspace, name: str, seed: int, own: int, overrides: Iterable[str]) -> Run:
    folder = name if seed == own else f"{name}-seed-{seed}"
    return Run.open(workspace, name, [*overrides, f"seed={seed}"], folder)


def collect(found: Sequence[Variation]) -> dict[str, Any]:
    """How each variation's final policy fares on test prompts, beside the plan's own.

    Rates are means over seeds; a difference is paired prompt by prompt within a seed, its interval
    over the prompts of all seeds, and `by_seed` shows how much one run differs from the next.
    Runs that are not finished are left out.
    """
    plan = next(iter(found[0].runs.values())).plan
    finals = {one.name: _finals(one) for one in found}
    full = finals[found[0].name]
    rows = [_row(one, finals[one.name], full) for one in found if finals[one.name]]
    return {
        "plan": found[0].name,
        "split": "test",
        "confidence": plan.evaluation.confidence,
        "simulated": plan.simulated,
        "show": list(plan.evaluation.show),
        "rows": rows,
        "unfinished": [
            f"{one.name}, seed {seed}"
            for one in found
            for seed in one.runs
            if seed not in finals[one.name]
        ],
    }


def write(plan_run: Run, result: Mapping[str, Any]) -> Path:
    """Put the comparison where the plan's report finds it."""
    path = plan_run.folder.root / FILE
    write_json(path, result)
    return path


def _finals(one: Variation) -> dict[int, Path]:
    """Seed → folder of the final policy's measure, of finished runs."""
    measured = {seed: final_measure(run) for seed, run in one.runs.items()}
    return {seed: path for seed, path in measured.items() if path is not None}


def _row(one: Variation, finals: Mapping[int, Path], full: Mapping[int, Path]) -> dict[str, Any]:
    plan = next(iter(one.runs.values())).plan
    mix, confidence = plan.mix, plan.evaluation.confidence
    row: dict[str, Any] = {
        "name": one.name.rpartition("/")[2],
        "varies": one.varies,
        "seeds": sorted(finals),
        "seconds": round(fmean(_seconds(one.runs[seed]) for seed in finals), 1),
        "measures": _measures(finals.values(), mix),
    }
    for mode in _MODES:
        mine = {seed: answers(path, "test", mode) for seed, path in finals.items()}
        shared = sorted(set(mine) & set(full))
        pairs = [(answers(full[seed], "test", mode), mine[seed]) for seed in shared]
        hardest = max((level for some in mine.values() for level in levels(some)), default=None)
        rates = [rate_of(some, mix, confidence) for some in mine.values()]
        row[mode] = {
            "rate": fmean(rate.value for rate in rates if rate is not None),
            **_beside(pairs, mix, confidence, None),
            "hardest": {"level": hardest, **_beside(pairs, mix, confidence, hardest)},
            "by_seed": {
                seed: _value(difference([pair], mix, confidence))
                for seed, pair in zip(shared, pairs, strict=True)
            },
        }
    return row


def _beside(
    pairs: Sequence[tuple[Answers, Answers]],
    mix: Mapping[str, float],
    confidence: float,
    level: int | None,
) -> dict[str, Any]:
    found = difference(pairs, mix, confidence, level) if pairs else None
    return {"difference": None if found is None else vars(found)}


def _value(found: Rate | None) -> float | None:
    return None if found is None else found.value


def _seconds(run: Run) -> float:
    manifests = (run.folder.manifest(step) for step in run.published())
    return sum(manifest.seconds for manifest in manifests if manifest is not None)


def _measures(folders: Iterable[Path], mix: Mapping[str, float]) -> dict[str, float]:
    """Named measures of sampled test responses, weighted by the mix, means over seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    for folder in folders:
        named = read_json(folder / "rates.json")["test"]["sampled"]["measures"]
        by_name: dict[str, dict[str, float]] = defaultdict(dict)
        for capability, values in named.items():
            for name, value in values.items():
                by_name[name][capability] = value
        for name, values in by_name.items():
            total = sum(mix[capability] for capability in values)
            weighted = sum(mix[capability] * value for capability, value in values.items())
            found[name].append(weighted / total)
    return {name: fmean(values) for name, values in sorted(found.items())}


def print_table(result: Mapping[str, Any]) -> None:
    """Print the comparison."""
    table = Table(
        title=f"Variations of {result['plan']}: final policy on test prompts",
        caption=result["simulated"] or None,
    )
    table.add_column("variation (seeds)", no_wrap=True)
    for head in ("T = 1", "difference", "greedy", "difference"):
        table.add_column(head, justify="right", no_wrap=True)
    for head in result["show"]:
        table.add_column(head, justify="right", overflow="fold")
    for row in result["rows"]:
        own = row["name"] == result["plan"].rpartition("/")[2]
        cells = [text for mode in _MODES for text in _cells(row[mode], own)]
        shown = (f"{row['measures'].get(name, float('nan')):.3g}" for name in result["show"])
        table.add_row(f"{row['name']} ({len(row['seeds'])})", *cells, *shown)
    Console().print(table)
    for name in result["unfinished"]:
        Console().print(f"not finished: {name}")


def _cells(found: Mapping[str, Any], own: bool) -> tuple[str, str]:
    """A rate, and its difference to the plan's in points with the interval below."""
    gap = found["difference"]
    points = ""
    if gap and not own:
        value, low, high = (100 * gap[key] for key in ("value", "low", "high"))
        points = f"{value:+.1f}\n{low:+.1f}…{high:+.1f}"
    return f"{100 * found['rate']:.1f} %", points
