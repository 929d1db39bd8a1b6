"""The table of rounds: how far each is, its dev and test pass rates, and what the gate said.

Reads manifests and states; light enough for `posttrain status`.

    print_table(run, rounds(run))
"""

from typing import Any

from rich.console import Console
from rich.table import Table

from posttrain.controller import Run
from posttrain.steps.step import Step
from posttrain.tables import read_json

Rates = dict[str, Any]


def rounds(run: Run) -> list[dict[str, Any]]:
    """One row for the base, the bootstrap and each round, as plain values for JSON."""
    rows = [_row(run, "base", [run.steps["round-0/measure-base"]])]
    for number in range(len(run.plan.rounds) + 1):
        steps = [step for step in run.steps.values() if step.round == number]
        name = f"round {number}" if number else "bootstrap"
        rows.append(_row(run, name, [s for s in steps if s.name != "measure-base"]))
    return rows


def _row(run: Run, name: str, steps: list[Step]) -> dict[str, Any]:
    states = [run.folder.state(step).kind for step in steps]
    row: dict[str, Any] = {
        "name": name,
        "done": states.count("done"),
        "steps": len(states),
        "stale": states.count("stale"),
        "seconds": 0.0,
        "rates": None,
        "promoted": None,
    }
    for step in steps:
        manifest = run.folder.manifest(step)
        if manifest is None or run.folder.state(step).kind != "done":
            continue
        row["seconds"] = round(row["seconds"] + manifest.seconds, 2)
        if step.name in ("measure", "measure-base"):
            row["rates"] = manifest.metrics["rates"]
        if step.name == "gate":
            row["promoted"] = read_json(run.folder.path(step) / "policy.json")["promoted"]
    return row


def print_table(run: Run, rows: list[dict[str, Any]]) -> None:
    """Print the table of rounds."""
    table = Table(title=run.plan.title or run.name, caption=run.plan.simulated or None)
    columns = ("", "steps", "dev T=1", "dev greedy", "test T=1", "test greedy", "gate", "s")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        done = f"{row['done']}/{row['steps']}" + (f" {row['stale']} stale" if row["stale"] else "")
        rates = [
            _percent(row["rates"], split, mode)
            for split in ("dev", "test")
            for mode in ("sampled", "greedy")
        ]
        gate = {True: "promoted", False: "kept back", None: ""}[row["promoted"]]
        table.add_row(row["name"], done, *rates, gate, f"{row['seconds']:.0f}")
    Console().print(table)


def round_line(run: Run, number: int) -> str:
    """One line about a finished round."""
    row = rounds(run)[number + 1]
    rates = ", ".join(
        f"{split} {_percent(row['rates'], split, 'sampled')} sampled, "
        f"{_percent(row['rates'], split, 'greedy')} greedy"
        for split in row["rates"]
    )
    verdict = "promoted" if row["promoted"] else "kept back, the best earlier policy goes on"
    return f"round {number}: {rates}; {verdict}"


def _percent(rates: Rates | None, split: str, mode: str) -> str:
    if rates is None or split not in rates or "all" not in rates[split][mode]:
        return ""
    return f"{100 * rates[split][mode]['all']['value']:.1f} %"
