"""Commands that read a run: plan, status, why, report, export."""

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
from posttrain.controller import Run
from posttrain.errors import Damaged
from posttrain.steps.manifest import check_hashes


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("plan")(plan_command)
    app.command("status")(status_command)
    app.command("why")(why_command)
    app.command("report")(report_command)
    app.command("export")(export_command)


def plan_command(
    number: Annotated[int, typer.Argument(help="Which round, 1 the first.")],
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show what a round would do: done, to run, stale and why, or not yet known."""
    run = open_run(workspace, plan, overrides, run_name)
    states = run.states(run.round_steps(number))
    if as_json:
        print_json(
            [{"step": s.address, "state": st.kind, "reasons": st.reasons} for s, st in states]
        )
        return
    for step, state in states:
        typer.echo(f"{step.address:<24} {state.kind:<8} {'; '.join(state.reasons)}".rstrip())


def status_command(
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every published file against its manifest.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show how far each round is, and the pass rates so far."""
    run = open_run(workspace, plan, overrides, run_name)
    if verify:
        _verify(run)
    rounds = call("posttrain.report.summary:rounds", run)
    if as_json:
        print_json(rounds)
        return
    call("posttrain.report.summary:print_table", run, rounds)


def _verify(run: Run) -> None:
    damaged = []
    files = 0
    for step in run.steps.values():
        manifest = run.folder.manifest(step)
        if manifest is not None:
            wrong = check_hashes(run.folder.path(step), manifest)
            folder = run.folder.path(step)
            damaged += [
                f"{step.address}/{name}: "
                f"{'its content changed' if (folder / name).is_file() else 'missing'}"
                for name in wrong
            ]
            files += len(manifest.files)
    if damaged:
        raise Damaged("\n".join(damaged))
    typer.echo(f"{files} published files match their manifests", err=True)


def why_command(
    row_id: Annotated[str, typer.Argument(help="Id of a row of any published table.")],
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Print the chain from a row back to its prompt, policy, seed, scores and decisions."""
    run = open_run(workspace, plan, overrides, run_name)
    chain = call("posttrain.lineage:chain_of", run, row_id)
    if as_json:
        print_json(chain)
        return
    for line in call("posttrain.lineage:lines", chain):
        typer.echo(line)


def report_command(
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; else runs/PLAN/report.html.")
    ] = None,
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the report: one HTML file that opens offline."""
    run = open_run(workspace, plan, overrides, run_name)
    path = out or run.folder.root / "report.html"
    call("posttrain.report.page:write_report", run, path)
    typer.echo(str(path))


def export_command(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")],
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the final model: bf16 weights, tokenizer, chat template and model card."""
    run = open_run(workspace, plan, overrides, run_name)
    chosen = call("posttrain.exporting:export_policy", run, out)
    typer.echo(f"{out}: {chosen}")
