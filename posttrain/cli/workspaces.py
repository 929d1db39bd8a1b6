"""Commands about what a user wrote: init, check, schema."""

import shutil
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
from posttrain.errors import BadInput
from posttrain.settings.plan import Plan
from posttrain.workspace import (
    FOLDERS,
    library,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("init")(init_command)
    app.command("check")(check_command)
    app.command("schema")(schema_command)


def init_command(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
) -> None:
    """Make a workspace: a copy of rounds/, recipes/ and data_quality/ to edit."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: expected a new or empty folder")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in FOLDERS:
        shutil.copytree(library() / name, folder / name, ignore=ignored)
    for name in ("data", "annotations"):
        (folder / name).mkdir()
    typer.echo(f"made {folder} with {', '.join(FOLDERS)}")
    typer.echo(f"next: cd {folder} && posttrain check --plan tiny && posttrain run --plan tiny")


def check_command(
    plan: PlanOption = None,
    overrides: SetOption = None,
    run_name: RunOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Resolve everything a plan names, and run nothing: settings, templates, hooks, data, model."""
    run = open_run(workspace, plan, overrides, run_name)
    findings = call("posttrain.checking:check_run", run)
    if as_json:
        print_json({"plan": run.plan_name, "checked": findings})
        return
    for what, found in findings.items():
        typer.echo(f"{what:<12} {found}")
    typer.echo(f"rounds/{run.plan_name}.yaml is fine")


def schema_command() -> None:
    """Print the JSON Schema of a plan."""
    print_json(Plan.model_json_schema())
