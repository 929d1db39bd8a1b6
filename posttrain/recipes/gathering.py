"""Rows of hooks side by side, each in a thread; what they ask for is answered in batches.

A hook is synchronous and sees one row. When every live row waits for an answer, all questions of
one kind go to the engine together, sorted by row; so what is in a batch, and with it every byte of
an answer, does not depend on which thread was faster. Knows threads and questions; knows no engine.

    for outcome in gather([("row-1", work)], {"generate": answer}, live=256, seconds=60):
        …
"""

import ctypes
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from posttrain.errors import BadInput, PosttrainError

ResultT = TypeVar("ResultT")
Answer = Callable[[list[Any]], list[Any]]
"""Answers to questions of one kind, in their order."""


@dataclass(frozen=True)
class Outcome(Generic[ResultT]):
    """What became of a row."""

    row_id: str
    value: ResultT | None
    problem: str = ""
    """Why there is no value: the last line of what was raised."""


class Abandoned(BaseException):
    """Raised in a row's thread once its time is over; `except Exception` lets it through."""


@dataclass(eq=False)
class Row:
    """A row at work, as its own thread and the one that gathers see it."""

    row_id: str
    _changed: threading.Condition
    question: tuple[str, Any] | None = None
    """Kind and content, while it waits for an answer."""
    ended: bool = False
    since: float | None = None
    """When its own code went on; None while it waits for others."""
    _reply: Any = None
    _error: Exception | None = None
    value: Any = None
    problem: str = ""
    abandoned: bool = False
    thread: threading.Thread | None = None

    def ask(self, kind: str, content: Any) -> Any:
        """An answer, once all live rows wait for theirs; called by the row's own thread.

        Raises:
            BadInput: this question cannot be answered.
        """
        with self._changed:
            self.question, self.since = (kind, content), None
            self._changed.notify_all()
            while self.question is not None:
                self._changed.wait()
            if self.abandoned:
                raise Abandoned
            error, self._error = self._error, None
        if error is not None:
            raise error
        return self._reply

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Time in the block is not the hook's own."""
        with self._changed:
            self.since = None
        try:
            yield
        finally:
            with self._changed:
                self.since = time.monotonic()
                if self.abandoned:
                    raise Abandoned

    def reply(self, answer: Any, error: Exception | None = None) -> None:
        """Let the row go on; called by the one who gathers, who holds the lock."""
        self._reply, self._error = answer, error
        self.question, self.since = None, time.monotonic()
        self._changed.notify_all()


@dataclass
class _Gathering(Generic[ResultT]):
    tasks: Sequence[tuple[str, Callable[[Row], ResultT]]]
    answers: Mapping[str, Answer]
    live: int
    seconds: float
    changed: threading.Condition = field(default_factory=threading.Condition)
    active: list[Row] = field(default_factory=list)
    begun: int = 0

    def run(self) -> Iterator[Outcome[ResultT]]:
        done: dict[int, Outcome[ResultT]] = {}
        numbers: dict[Row, int] = {}
        told = 0
        try:
            while told < len(self.tasks):
                while self.begun < len(self.tasks) and len(self.active) < self.live:
                    number = self.begun
                    numbers[self._begin()] = number
                self._wait()
                ended = [row for row in self.active if row.ended]
                self.active = [row for row in self.active if not row.ended]
                for row in ended:
                    value = None if row.problem else row.value
                    done[numbers.pop(row)] = Outcome(row.row_id, value, row.problem)
                while told in done:
                    yield done.pop(told)
                    told += 1
                # New rows first: a batch holds as many rows as may live.
                if self.active and not (ended and self.begun < len(self.tasks)):
                    self._answer()
        finally:
            for row in self.active:
                self._abandon(row)

    def _begin(self) -> Row:
        row_id, work = self.tasks[self.begun]
        row = Row(row_id, self.changed, since=time.monotonic())
        row.thread = threading.Thread(target=self._work, args=(row, work), daemon=True)
        self.active.append(row)
        self.begun += 1
        row.thread.start()
        return row

    def _work(self, row: Row, work: Callable[[Row], ResultT]) -> None:
        value, problem = None, ""
        try:
            value = work(row)
        except Abandoned:
            problem = row.problem
        # Whatever a user's hook raises is that row's fate, and told as such.
        except BaseException as error:
            problem = _last_line(error)
        with self.changed:
            if not row.abandoned:
                row.value, row.problem = value, problem
            row.ended = True
            self.changed.notify_all()

    def _wait(self) -> None:
        """Until no live row works; those whose time is over are let go."""
        with self.changed:
            while True:
                now = time.monotonic()
                left = [
                    row.since + self.seconds - now
                    for row in self.active
                    if not row.ended and row.question is None and row.since is not None
                ]
                working = [row for row in self.active if not row.ended and row.question is None]
                if not working:
                    return
                for row in working:
                    if row.since is not None and now > row.since + self.seconds:
                        row.problem = f"time limit: {self.seconds:g} s of its own"
                        self._abandon(row)
                        row.ended = True
                self.changed.wait(max(0.01, min(left)) if left else None)

    def _abandon(self, row: Row) -> None:
        """End a row's thread as soon as it runs Python code."""
        row.abandoned = True
        with self.changed:
            row.question = None
            self.changed.notify_all()
        assert row.thread is not None
        if row.thread.is_alive() and row.thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(row.thread.ident), ctypes.py_object(Abandoned)
            )

    def _answer(self) -> None:
        """Give every waiting row its answer, kind by kind."""
        waiting = sorted(self.active, key=lambda row: row.row_id)
        for kind in sorted({row.question[0] for row in waiting if row.question is not None}):
            rows = [row for row in waiting if row.question is not None and row.question[0] == kind]
            contents = [row.question[1] for row in rows if row.question is not None]
            try:
                replies, error = self.answers[kind](contents), None
            except BadInput as raised:
                if len(rows) > 1:
                    self._one_by_one(rows, self.answers[kind])
                    continue
                replies, error = [None], raised
            with self.changed:
                for row, reply in zip(rows, replies, strict=True):
                    row.reply(reply, error)

    def _one_by_one(self, rows: Sequence[Row], answer: Answer) -> None:
        """One question may spoil a batch: only its own row hears of it."""
        for row in rows:
            assert row.question is not None
            try:
                (reply,), error = answer([row.question[1]]), None
            except BadInput as raised:
                reply, error = None, raised
            with self.changed:
                row.reply(reply, error)


def gather(
    tasks: Sequence[tuple[str, Callable[[Row], ResultT]]],
    answers: Mapping[str, Answer],
    *,
    live: int,
    seconds: float,
) -> Iterator[Outcome[ResultT]]:
    """What becomes of each row, in the order of the tasks.

    Args:
        tasks: Row's id, and what is done with it; ids are different.
        answers: By the kinds of questions that rows may ask.
        live: Rows at work at one time.
        seconds: Time that a row's own code may take between two questions.

    Raises:
        StepFailed: whoever answers stopped answering.
    """
    return _Gathering(tasks, answers, live, seconds).run()


def _last_line(error: BaseException) -> str:
    if isinstance(error, PosttrainError):
        return str(error).partition("\n")[0]
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
