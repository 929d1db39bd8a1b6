"""Commands that do work: round, run, ablations, gc."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.shared import (
    JsonOption,
    PlanOption,
    RunOption,
    SetOption,
    WorkspaceOption,
    call,
    open_run,
    print_json,
)
from posttrain.cli.watch import watch_for_terminal
from posttrain.controller import Run, Window, slice_of, window_of
from posttrain.disk import collect, collectable
from posttrain.errors import BadInput, WaitingForPeople
from posttrain.scheduler import run_steps
from posttrain.steps.lock import run_lock
from posttrain.steps.step import Step
from posttrain.workspace import choose_plan, find_workspace

RoundArgument = Annotated[int, typer.Argument(help="Which round, 1 the first.")]
FromOption = Annotated[
    str | None, typer.Option("--from", help="Start at this step; those before it must be done.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Stop after this step.")]
RedoOption = Annotated[
    bool, typer.Option("--redo-stale", help="Set stale steps aside and make them again.")
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and the steps; run nothing.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("round")(round_command)
    app.command("run")(run_command)
    app.command("ablations")(ablations_command)
    app.command("gc")(gc_command)


def round_command(
    number: RoundArgument,
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    first: FromOption = None,
    last: UntilOption = None,
    redo_stale: RedoOption = False,
    dry_run: DryOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Run one round; run it again to continue where it stopped."""
    run = open_run(workspace, plan, overrides, run_name)
    window = Window(first, last, redo_stale)
    if dry_run:
        states = run.states(slice_of(run, number, window))
        print_json(
            {
                "plan": run.plan.model_dump(mode="json"),
                "steps": [{"step": s.address, "state": st.kind} for s, st in states],
            }
        )
        return
    with run_lock(run.folder.root):
        _work(run, window_of(run, number, window), redo_stale)


def run_command(
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    redo_stale: RedoOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Run every round of the plan, one after another."""
    run = open_run(workspace, plan, overrides, run_name)
    with run_lock(run.folder.root):
        _work(run, list(run.steps.values()), redo_stale)


def _work(run: Run, steps: Sequence[Step], redo_stale: bool) -> None:
    """Bring steps up to date and show it; a round that is complete is told in a line."""

    def line(number: int) -> str | None:
        if not run.is_done(number):
            return None
        return str(call("posttrain.report.summary:round_line", run, number))

    collections = call("posttrain.annotate.collection:settle", run, steps)
    for text in collections.closed:
        typer.echo(text)
    try:
        with watch_for_terminal(steps, line) as watch:
            run_steps(run, steps, watch, redo_stale)
    except WaitingForPeople as error:
        raise WaitingForPeople("; ".join([str(error), *collections.still_open])) from None


def ablations_command(
    plan: PlanOption = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Seeds to run, e.g. 0,1,2; else the plan's.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this variation (repeatable).")
    ] = None,
    overrides: SetOption = None,
    compare_only: Annotated[
        bool, typer.Option("--compare-only", help="Run nothing; compare what is finished.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Run a plan and its variations (plans that extend it), and compare how they end."""
    found_workspace = find_workspace(workspace)
    name = choose_plan(found_workspace, plan)
    found = call(
        "posttrain.ablations:runs_of",
        found_workspace,
        name,
        _numbers(seeds),
        only or (),
        overrides or (),
    )
    if not compare_only:
        for variation in found:
            for run in variation.runs.values():
                typer.echo(f"{run.name}: {variation.varies or 'the plan itself'}", err=as_json)
                with run_lock(run.folder.root):
                    _work(run, list(run.steps.values()), redo_stale=False)
    result = call("posttrain.ablations:collect", found)
    own = Run.open(found_workspace, name, overrides or ())
    path = call("posttrain.ablations:write", own, result)
    if as_json:
        print_json(result)
        return
    call("posttrain.ablations:print_table", result)
    typer.echo(f"{path}; posttrain report --plan {name} shows it")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise BadInput(f"--seeds {text}: expected numbers with commas between them, e.g. 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def gc_command(
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Remove weights that the plan's `keep` does not name; manifests and lineage stay."""
    run = open_run(workspace, plan, overrides, run_name)
    with run_lock(run.folder.root):
        found = collectable(run)
        total = sum(found.values())
        for path in found:
            typer.echo(f"{'would remove' if dry_run else 'removed'} {_short(run, path)}")
        if not dry_run:
            collect(run, found)
    typer.echo(f"{len(found)} files, {total / 2**20:.1f} MiB")


def _short(run: Run, path: Path) -> str:
    return str(path.relative_to(run.folder.root))
