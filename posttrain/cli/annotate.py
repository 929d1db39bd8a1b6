"""Commands about people's judgments: annotate add, serve, status, close, export, import."""

from pathlib import Path
from typing import Annotated, Any

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
from posttrain.rows import Strength

annotate_app = typer.Typer(no_args_is_help=True)
RoundArgument = Annotated[int, typer.Argument(help="The round that published the tasks.")]
HostOption = Annotated[str, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")]
KINDS = ("label-studio", "jsonl", "parquet")
FORMATS = ("trl", "helpsteer")
ALONE = "me"
"""Who judges where nobody was named."""


@annotate_app.command("add")
def annotate_add(
    number: RoundArgument,
    name: Annotated[str, typer.Argument(help="Who judges.")],
    host: HostOption = "127.0.0.1",
    port: PortOption = 8800,
    plan: PlanOption = None,
    overrides: SetOption = None,
    run: RunOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Make somebody's personal link; an earlier one of the same name ends."""
    collection = _opened(workspace, plan, overrides, run, number)
    place = call("posttrain.annotate.collection:address", host, port)
    typer.echo(f"{place}/a/{collection.store.add_annotator(name)}")


@annotate_app.command("serve")
def annotate_serve(
    number: RoundArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8800,
    minutes: Annotated[
        float, typer.Option("--minutes", min=1, help="After which a task left open returns.")
    ] = 30,
    plan: PlanOption = None,
    overrides: SetOption = None,
    run: RunOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve the page on which a round's tasks are judged."""
    collection = _opened(workspace, plan, overrides, run, number, 60 * minutes)
    names = collection.store.annotators()
    if not names and not call("posttrain.annotate.collection:is_local", host):
        raise BadInput(
            f"--host {host}: others can reach this page, and nobody has a link yet; make links "
            f"first: posttrain annotate add {number} NAME --host {host}"
        )
    place = call("posttrain.annotate.collection:address", host, port)
    if not names or names == [ALONE]:
        typer.echo(f"{place}/a/{collection.own_token(ALONE)}")
    else:
        typer.echo(f"serving {', '.join(names)} on {place}, each by their own link")
    try:
        call("posttrain.annotate.serving:serve", collection, host, port)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"the page needs the extra `annotate`: pip install 'posttrain[annotate]' ({error})"
        ) from error


@annotate_app.command("status")
def annotate_status(
    number: RoundArgument,
    as_json: JsonOption = False,
    plan: PlanOption = None,
    overrides: SetOption = None,
    run: RunOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Say how far a round's collection is, and who did how much."""
    collection = _opened(workspace, plan, overrides, run, number)
    told = collection.status()
    if as_json:
        print_json(told)
        return
    state = "closed" if told["closed"] else "open"
    typer.echo(f"{told['judgments']} of {told['wanted']} judgments, {state}")
    for name, one in told["annotators"].items():
        typer.echo(f"  {name}: {_in_words(one)}")
    agreement = told["agreement"]
    if agreement["tasks"]:
        alpha = agreement["alpha"]["side"]
        text = "" if alpha is None else f", Krippendorff's α {alpha['value']:.2f}"
        typer.echo(f"same side on {_percent(agreement['same'])} shared tasks{text}")


def _in_words(one: dict[str, Any]) -> str:
    """What somebody did, in a line."""
    parts = [f"{one['judgments']} judgments"]
    if one["seconds"] is not None:
        parts.append(f"{one['seconds']:.0f} s each")
    if one["gold"] is not None:
        parts.append(f"{_percent(one['gold'])} known answers")
    if one["first"] is not None:
        parts.append(f"the first chosen in {_percent(one['first'])}")
    return ", ".join(parts)


def _percent(rate: dict[str, Any]) -> str:
    return f"{100 * rate['value']:.0f} % of {rate['num']}"


@annotate_app.command("close")
def annotate_close(
    number: RoundArgument,
    plan: PlanOption = None,
    overrides: SetOption = None,
    run: RunOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """End a round's collection and hand its judgments to the next round."""
    collection = _opened(workspace, plan, overrides, run, number)
    typer.echo(f"{collection.close()} judgments in {collection.answers}")


@annotate_app.command("export")
def annotate_export(
    number: RoundArgument,
    kind: Annotated[str, typer.Option("--to", help="label-studio, jsonl or parquet.")],
    out: Annotated[Path, typer.Option("--out", help="A file; for label-studio a folder.")],
    plan: PlanOption = None,
    overrides: SetOption = None,
    run: RunOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a round's tasks for another tool, without a word of which model wrote what."""
    _check_choice("--to", kind, KINDS)
    collection = _opened(workspace, plan, overrides, run, number)
    made = call("posttrain.annotate.exchange:export_collection", collection, kind, out)
    line = f"{made.num_tasks} tasks in {', '.join(map(str, made.files))}"
    left_out = f"; {made.num_left_out} have all their judgments" if made.num_left_out else ""
    typer.echo(line + left_out)


@annotate_app.command("import")
def annotate_import(
    file: Annotated[Path, typer.Argument(help="What another tool wrote.")],
    kind: Annotated[
        str, typer.Option("--from", help="label-studio, jsonl, parquet; trl or helpsteer.")
    ],
    number: Annotated[
        int | None, typer.Option("--round", help="The round whose tasks were judged.")
    ] = None,
    people: Annotated[
        list[str] | None,
        typer.Option("--person", help="Who a user of Label Studio is, e.g. 3=ana (repeatable)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Preference file that trl or helpsteer become.")
    ] = None,
    capability: Annotated[
        str, typer.Option("--capability", help="Of preferences that name none.")
    ] = "general",
    strength: Annotated[
        str, typer.Option("--strength", help="Of TRL's preferences, which have none.")
    ] = "better",
    plan: PlanOption = None,
    overrides: SetOption = None,
    run: RunOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Bring in judgments of a round's tasks, or others' preferences as a file for a plan.

    HelpSteer: -3 and 3 are significantly better, -2 and 2 better, -1 and 1 slightly better (below
    0 the first response), 0 is a tie.
    """
    _check_choice("--from", kind, (*KINDS, *FORMATS))
    if kind in FORMATS:
        _check_choice("--strength", strength, tuple(map(str, Strength)))
        if out is None or number is not None:
            raise BadInput(f"--from {kind}: name the file to write with --out, and no --round")
        told = call(
            "posttrain.preference_files:convert_file",
            file,
            kind,
            out,
            capability,
            Strength(strength),
        )
        typer.echo(told)
        return
    if number is None or out is not None:
        raise BadInput(f"--from {kind}: say whose tasks were judged with --round, and no --out")
    found = open_run(workspace, plan, overrides, run)
    collection = call("posttrain.annotate.collection:open_collection", found, number)
    share = found.plan.resources.reject_share
    names = _people(people or [])
    done = call(
        "posttrain.annotate.exchange:import_judgments", collection, file, kind, names, share
    )
    typer.echo(f"{done.taken} new judgments")
    if done.rejects:
        place = collection.answers.with_suffix(".rejects.jsonl")
        call("posttrain.tables:write_rows", place, [vars(one) for one in done.rejects])
        typer.echo(f"{len(done.rejects)} refused, see {place}; the first: {done.rejects[0].reason}")


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInput(f"{option} {value}: expected {', '.join(known)}")


def _people(texts: list[str]) -> dict[int, str]:
    """Users of Label Studio by their numbers."""
    found = {}
    for text in texts:
        number, _, name = text.partition("=")
        if not number.isdecimal() or not name:
            raise BadInput(f"--person {text}: expected NUMBER=NAME")
        found[int(number)] = name
    return found


def _opened(
    workspace: Path | None,
    plan: str | None,
    overrides: list[str] | None,
    run: str | None,
    number: int,
    *lease_seconds: float,
) -> Any:
    """A round's collection, whose code is loaded by these commands alone."""
    found = open_run(workspace, plan, overrides, run)
    return call("posttrain.annotate.collection:open_collection", found, number, *lease_seconds)
