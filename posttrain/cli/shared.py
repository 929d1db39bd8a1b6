"""Options that several commands share, and how they open a run."""

import importlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.controller import Run
from posttrain.errors import BadInput
from posttrain.workspace import choose_plan, find_workspace

RUN_NAME = r"[A-Za-z0-9][\w-]*(/[A-Za-z0-9][\w-]*)*"
PlanOption = Annotated[
    str | None, typer.Option("--plan", help="Plan in rounds/, by name; not needed if only one.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key of the plan, e.g. dpo.beta=0.2.")
]
RunOption = Annotated[
    str | None, typer.Option("--run", help="Folder in runs/ to work in; else the plan's name.")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder that holds rounds/; else the nearest one above."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_run(
    workspace: Path | None, plan: str | None, overrides: list[str] | None, name: str | None
) -> Run:
    """The run that a command's options name.

    Raises:
        BadInput: no such plan, a wrong setting, or a name that is no folder below `runs/`.
    """
    found = find_workspace(workspace)
    if name is not None and not re.fullmatch(RUN_NAME, name):
        raise BadInput(f"--run {name}: expected words of letters, digits, - and _, joined by /")
    return Run.open(found, choose_plan(found, plan), overrides or [], name)


def print_json(value: object) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def call(function: str, *arguments: Any) -> Any:
    """Call `module:function`, named as text so that the command line starts without loading it."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)
