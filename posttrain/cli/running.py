"""Commands that do work: round, run, gc."""

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.shared import PlanOption, SetOption, WorkspaceOption, call, open_run, print_json
from posttrain.cli.watch import watch_for_terminal
from posttrain.controller import Run, Window, run_steps, slice_of, window_of
from posttrain.disk import collect, collectable
from posttrain.steps.lock import run_lock

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
    app.command("gc")(gc_command)


def round_command(
    number: RoundArgument,
    plan: PlanOption = None,
    overrides: SetOption = None,
    first: FromOption = None,
    last: UntilOption = None,
    redo_stale: RedoOption = False,
    dry_run: DryOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Run one round; run it again to continue where it stopped."""
    run = open_run(workspace, plan, overrides)
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
        _round(run, number, window)


def run_command(
    plan: PlanOption = None,
    overrides: SetOption = None,
    redo_stale: RedoOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Run every round of the plan, one after another."""
    run = open_run(workspace, plan, overrides)
    with run_lock(run.folder.root):
        for number in range(1, len(run.plan.rounds) + 1):
            _round(run, number, Window(redo_stale=redo_stale))


def _round(run: Run, number: int, window: Window) -> None:
    steps = window_of(run, number, window)
    with watch_for_terminal(number, len(steps)) as watch:
        run_steps(run, steps, watch, window.redo_stale)
    if run.is_done(number):
        typer.echo(call("posttrain.report.summary:round_line", run, number))


def gc_command(
    plan: PlanOption = None,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Remove weights that the plan's `keep` does not name; manifests and lineage stay."""
    run = open_run(workspace, plan, overrides)
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
