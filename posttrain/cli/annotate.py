"""Commands about people's judgments: annotate add, serve, status, close."""

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

annotate_app = typer.Typer(no_args_is_help=True)
RoundArgument = Annotated[int, typer.Argument(help="The round that published the tasks.")]
HostOption = Annotated[str, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")]
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
    typer.echo(f"http://{host}:{port}/a/{collection.store.add_annotator(name)}")


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
    if not names or names == [ALONE]:
        typer.echo(f"http://{host}:{port}/a/{collection.store.add_annotator(ALONE)}")
    else:
        typer.echo(f"serving {', '.join(names)} on http://{host}:{port}, each by their own link")
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
