"""News of how far a command is: a bar on a terminal, elsewhere a plain line every few seconds.

with progress("sampling", "requests") as told:
    told(done, total)
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 5.0
"""Seconds between two lines of progress where there is no terminal."""

Told = Callable[[int, int | None], None]
"""Called with how much is done, and the total where it is known."""


@contextmanager
def progress(label: str, things: str, more: Callable[[], str] = lambda: "") -> Iterator[Told]:
    """Show progress on the standard error while the block runs.

    Args:
        label: what is going on, e.g. `sampling`.
        things: what is counted, e.g. `requests`.
        more: asked for a few more words each time, e.g. the speed.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        last = time.monotonic()

        def line(done: int, total: int | None) -> None:
            nonlocal last
            if done != total and time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                of = "" if total is None else f" of {total}"
                news = filter(None, (f"{label}: {done}{of} {things}", more()))
                print(", ".join(news), file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total, description=more())
