"""The `posttrain` command: its sub-commands, and how errors become one line and an exit code.

Exit codes: 0 done, 1 failed, 2 bad input or settings, 3 waiting for people, 75 preempted,
130 interrupted.
"""

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from posttrain import __version__
from posttrain.cli import annotate, data, models, reading, recipes, running, workspaces
from posttrain.errors import Interrupted, PosttrainError, Preempted

app = typer.Typer(
    help="Post-train a language model in rounds: reward model, rejection sampling, curation, SFT, "
    "DPO and weight averaging. Every command can be killed and run again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(
    recipes.recipes_app, name="recipes", help="Capability recipes: list, show, new, test."
)
app.add_typer(
    annotate.annotate_app,
    name="annotate",
    help="People's judgments of a round's tasks: page, links, files for other tools.",
)
for _commands in (workspaces, running, reading, models, data):
    _commands.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"posttrain {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Nothing to do before a sub-command."""


def _preempted(number: int, frame: FrameType | None) -> NoReturn:
    raise Preempted("asked to end (SIGTERM); run the same command again to continue")


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted("interrupted; run the same command again to continue")


def main() -> None:
    """Entry point of the `posttrain` command."""
    signal.signal(signal.SIGTERM, _preempted)
    signal.signal(signal.SIGINT, _interrupted)
    try:
        app()
    except PosttrainError as error:
        for line in str(error).splitlines():
            print(f"posttrain: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        print(f"posttrain: {error.strerror or error}{place}", file=sys.stderr)
        sys.exit(PosttrainError.exit_code)
