"""Commands about recipes: ls, show, new, test."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.cli.shared import JsonOption, SetOption, WorkspaceOption, call, print_json
from posttrain.scaffold import new_recipe
from posttrain.settings.base import from_options, with_overrides
from posttrain.settings.trial_options import TrialSettings
from posttrain.workspace import (
    find_recipe,
    find_workspace,
    load_recipe_settings,
    recipe_folders,
)

recipes_app = typer.Typer(no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="A recipe.")]


@recipes_app.command("ls")
def recipes_ls(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List the recipes a plan can name."""
    found = find_workspace(workspace)
    rows = []
    for name, folder in sorted(recipe_folders(found).items()):
        settings = load_recipe_settings(found, name, {})
        rows.append({"name": name, "origin": folder.origin, "summary": settings.summary})
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:<14} {row['origin']:<10} {row['summary']}")


@recipes_app.command("show")
def recipes_show(
    name: NameArgument,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show a recipe's settings and where they come from."""
    found = find_workspace(workspace)
    folder = find_recipe(found, name)
    settings = load_recipe_settings(found, name, {}).model_dump(mode="json")
    if as_json:
        print_json({"folder": str(folder.folder), "origin": folder.origin, **settings})
        return
    typer.echo(f"{folder.folder} ({folder.origin})")
    for key, value in settings.items():
        typer.echo(f"{key:<16} {json.dumps(value, ensure_ascii=False)}")


@recipes_app.command("new")
def recipes_new(
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits, - and _.")],
    workspace: WorkspaceOption = None,
) -> None:
    """Make a recipe's folder with a working example of every file, to edit."""
    folder = find_workspace(workspace).root / "recipes" / name
    new_recipe(folder)
    typer.echo(f"made {folder}")
    typer.echo(f"next: posttrain recipes test {name} --model MODEL")


@recipes_app.command("test")
def recipes_test(
    name: NameArgument,
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of the model that answers.")
    ] = None,
    transcript: Annotated[
        Path | None,
        typer.Option("--transcript", help="With --model: record answers here; without: use them."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="File of prompts; else the recipe's own hook.")
    ] = None,
    num: Annotated[int, typer.Option("-n", help="Prompts.")] = 4,
    k: Annotated[int, typer.Option("-k", help="Responses to each.")] = 2,
    seed: Annotated[int, typer.Option("--seed", help="All randomness follows from it.")] = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Run a recipe on a handful of prompts and show each step's rows."""
    settings = from_options(
        TrialSettings,
        {
            "model": model,
            "transcript": transcript,
            "prompts": prompts,
            "num": num,
            "k": k,
            "seed": seed,
            "overrides": with_overrides({}, overrides or []),
        },
    )
    steps = call("posttrain.recipe_trial:try_recipe", find_workspace(workspace), name, settings)
    if as_json:
        print_json(steps)
        return
    for step, rows in steps.items():
        typer.echo(f"{step}: {len(rows)}")
        for row in rows:
            typer.echo(f"  {row.get('id', '')} {_shown(row)}".rstrip())


def _shown(row: dict[str, Any]) -> str:
    """A row in a line: dialogs turn by turn, everything else as it stands; `--json` shows all."""
    if "example" in row:
        dialog, rest = row["example"]["messages"], {"source": row["example"].get("source")}
    elif "prompt" in row:
        dialog, rest = row["prompt"], {k: row[k] for k in ("level", "reference") if row.get(k)}
    else:
        dialog, rest = [], {key: value for key, value in row.items() if key != "id"}
    turns = [turn["content"] or json.dumps(turn.get("tool_calls")) for turn in dialog]
    words = [*map(_short, turns), _short(json.dumps(rest, ensure_ascii=False)) if rest else ""]
    return " » ".join(word for word in words if word)


def _short(text: str) -> str:
    text = text.replace("\n", "⏎")
    return f"{text[:160]}…" if len(text) > 160 else text
