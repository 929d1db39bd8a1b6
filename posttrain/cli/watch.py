"""Shows a round while it runs: a progress bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from posttrain.scheduler import Watch
from posttrain.steps.step import Step


class _Plain:
    """One line a step."""

    def __init__(self, number: int, total: int) -> None:
        self._number, self._total, self._done, self._skipped = number, total, 0, 0

    def begin(self, step: Step, resumed: bool) -> None:
        self._flush()
        if resumed:
            self._say(f"{step.address} goes on where it stopped")

    def progress(self, step: Step, done: int, total: int) -> None:
        """Plain output keeps to one line a step."""

    def end(self, step: Step, seconds: float) -> None:
        self._done += 1
        self._say(f"{step.address} [{self._done}/{self._total}] {seconds:.1f} s")

    def skip(self, step: Step) -> None:
        self._done += 1
        self._skipped += 1

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._skipped:
            self._say(f"round {self._number}: {self._skipped} of {self._total} steps already done")
            self._skipped = 0

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)


class _Bars:
    """A bar for the round and one for each running step."""

    def __init__(self, progress: Progress, number: int, total: int) -> None:
        self._progress = progress
        self._all = progress.add_task(f"round {number}", total=total)
        self._bars: dict[str, TaskID] = {}

    def begin(self, step: Step, resumed: bool) -> None:
        again = " (goes on)" if resumed else ""
        self._bars[step.address] = self._progress.add_task(f"{step.address}{again}", total=None)

    def progress(self, step: Step, done: int, total: int) -> None:
        self._progress.update(self._bars[step.address], completed=done, total=total)

    def end(self, step: Step, seconds: float) -> None:
        self._progress.remove_task(self._bars.pop(step.address))
        self._progress.print(f"{step.address} {seconds:.1f} s")
        self._progress.advance(self._all)

    def skip(self, step: Step) -> None:
        self._progress.advance(self._all)


@contextmanager
def watch_for_terminal(number: int, total: int) -> Iterator[Watch]:
    """A watch that suits where the output goes."""
    if not sys.stdout.isatty():
        plain = _Plain(number, total)
        try:
            yield plain
        finally:
            plain.close()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(), transient=True) as progress:
        yield _Bars(progress, number, total)
