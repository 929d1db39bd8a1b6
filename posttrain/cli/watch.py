"""Shows rounds while they run: progress bars on a terminal, plain lines elsewhere."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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

RoundLine = Callable[[int], str | None]
"""What there is to say when the last step of a round has ended."""


class _Rounds:
    """Counts the steps of each round; the bootstrap counts with round 1."""

    def __init__(self, steps: Sequence[Step], line: RoundLine) -> None:
        self.total = Counter(map(number_of, steps))
        self.done: Counter[int] = Counter()
        self._line = line

    def count(self, step: Step) -> str | None:
        """One more step is done; the round's line if it was the last."""
        number = number_of(step)
        self.done[number] += 1
        return self._line(number) if self.done[number] == self.total[number] else None


def number_of(step: Step) -> int:
    """The round in which a step is run."""
    return max(1, step.round)


class _Plain:
    """One line a step."""

    def __init__(self, rounds: _Rounds) -> None:
        self._rounds = rounds
        self._skipped: Counter[int] = Counter()

    def begin(self, step: Step, resumed: bool) -> None:
        self.flush()
        if resumed:
            self._say(f"{step.address} goes on where it stopped")

    def progress(self, step: Step, done: int, total: int) -> None:
        """Plain output keeps to one line a step."""

    def end(self, step: Step, seconds: float) -> None:
        self.flush()
        line = self._rounds.count(step)
        number = number_of(step)
        counted = f"[{self._rounds.done[number]}/{self._rounds.total[number]}]"
        self._say(f"{step.address} {counted} {seconds:.1f} s")
        if line:
            self._say(line)

    def skip(self, step: Step) -> None:
        number = number_of(step)
        self._skipped[number] += 1
        line = self._rounds.count(step)
        if line:
            self.flush()
            self._say(line)

    def flush(self) -> None:
        """Tell how much was done before."""
        for number, skipped in sorted(self._skipped.items()):
            total = self._rounds.total[number]
            self._say(f"round {number}: {skipped} of {total} steps already done")
        self._skipped.clear()

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)


class _Bars:
    """A bar for each round at work and one for each running step."""

    def __init__(self, progress: Progress, rounds: _Rounds) -> None:
        self._progress, self._rounds = progress, rounds
        self._of_round: dict[int, TaskID] = {}
        self._of_step: dict[str, TaskID] = {}

    def begin(self, step: Step, resumed: bool) -> None:
        self._round(number_of(step))
        again = " (goes on)" if resumed else ""
        self._of_step[step.address] = self._progress.add_task(f"{step.address}{again}", total=None)

    def progress(self, step: Step, done: int, total: int) -> None:
        self._progress.update(self._of_step[step.address], completed=done, total=total)

    def end(self, step: Step, seconds: float) -> None:
        self._progress.remove_task(self._of_step.pop(step.address))
        self._progress.print(f"{step.address} {seconds:.1f} s")
        self._count(step)

    def skip(self, step: Step) -> None:
        self._count(step)

    def _count(self, step: Step) -> None:
        number = number_of(step)
        self._progress.advance(self._round(number))
        line = self._rounds.count(step)
        if line:
            self._progress.print(line)
        if self._rounds.done[number] == self._rounds.total[number]:
            self._progress.remove_task(self._of_round.pop(number))

    def _round(self, number: int) -> TaskID:
        if number not in self._of_round:
            total = self._rounds.total[number]
            self._of_round[number] = self._progress.add_task(f"round {number}", total=total)
        return self._of_round[number]


@contextmanager
def watch_for_terminal(steps: Sequence[Step], line: RoundLine) -> Iterator[Watch]:
    """A watch that suits where the output goes."""
    rounds = _Rounds(steps, line)
    if not sys.stdout.isatty():
        plain = _Plain(rounds)
        try:
            yield plain
        finally:
            plain.flush()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(), transient=True) as progress:
        yield _Bars(progress, rounds)
