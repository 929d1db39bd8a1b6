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


class _Shared:
    """What the one who gathers shares with the rows' threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.quiet = threading.Condition(self.lock)
        """Told when no row works any more. Rows wait each at a gate of its own: were all told of
        everything, a thousand rows would wake each other a million times."""
        self.working = 0
        """Live rows that neither wait for an answer nor have ended."""

    def rest(self) -> None:
        """A row works no more; called with the lock held."""
        self.working -= 1
        if not self.working:
            self.quiet.notify()


@dataclass(eq=False)
class Row:
    """A row at work, as its own thread and the one that gathers see it."""

    row_id: str
    _shared: _Shared
    question: tuple[str, Any] | None = None
    """Kind and content, while it waits for an answer."""
    ended: bool = False
    since: float | None = None
    """When its own code went on; None while it waits for others."""
    _gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
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
        with self._shared.lock:
            if self.abandoned:
                raise Abandoned
            self.question, self.since = (kind, content), None
            self._shared.rest()
        self._gate.acquire()
        if self.abandoned:
            raise Abandoned
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._reply

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Time in the block is not the hook's own."""
        with self._shared.lock:
            self.since = None
        try:
            yield
        finally:
            with self._shared.lock:
                self.since = time.monotonic()
                if self.abandoned:
                    raise Abandoned

    def reply(self, answer: Any, error: Exception | None = None) -> None:
        """Let the row go on; called by the one who gathers."""
        with self._shared.lock:
            self._reply, self._error = answer, error
            self.question, self.since = None, time.monotonic()
            self._shared.working += 1
        self._gate.release()

    def end(self, value: Any, problem: str) -> None:
        """Leave the value behind; called by the row's own thread."""
        with self._shared.lock:
            self.ended = True
            if not self.abandoned:
                self.value, self.problem = value, problem
                self._shared.rest()

    def abandon(self) -> None:
        """End the row's thread as soon as it runs Python code; the lock is held."""
        if self.question is None and not self.ended:
            self._shared.rest()
        self.abandoned = True
        self.question = None
        self._gate.release()
        assert self.thread is not None
        if self.thread.is_alive() and self.thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self.thread.ident), ctypes.py_object(Abandoned)
            )


@dataclass
class _Gathering(Generic[ResultT]):
    tasks: Sequence[tuple[str, Callable[[Row], ResultT]]]
    answers: Mapping[str, Answer]
    live: int
    seconds: float
    shared: _Shared = field(default_factory=_Shared)
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
            with self.shared.lock:
                for row in self.active:
                    row.abandon()

    def _begin(self) -> Row:
        row_id, work = self.tasks[self.begun]
        row = Row(row_id, self.shared, since=time.monotonic())
        row.thread = threading.Thread(target=self._work, args=(row, work), daemon=True)
        self.active.append(row)
        self.begun += 1
        with self.shared.lock:
            self.shared.working += 1
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
        row.end(value, problem)

    def _wait(self) -> None:
        """Until no live row works; those whose time is over are let go."""
        with self.shared.lock:
            while self.shared.working:
                now = time.monotonic()
                left = None
                for row in self.active:
                    if row.ended or row.question is not None or row.since is None:
                        continue
                    rest = row.since + self.seconds - now
                    if rest < 0:
                        row.problem = f"time limit: {self.seconds:g} s of its own"
                        row.abandon()
                        row.ended = True
                    else:
                        left = rest if left is None else min(left, rest)
                if self.shared.working:
                    # A row that is elsewhere now may be back before anybody is told.
                    self.shared.quiet.wait(self.seconds if left is None else max(0.01, left))

    def _answer(self) -> None:
        """Give every waiting row its answer, kind by kind.

        Who waits is settled before the first answer: a row that goes on may ask again at once.
        """
        groups: dict[str, list[tuple[Row, Any]]] = {}
        for row in sorted(self.active, key=lambda row: row.row_id):
            assert row.question is not None
            groups.setdefault(row.question[0], []).append((row, row.question[1]))
        for kind, asked in sorted(groups.items()):
            try:
                replies = self.answers[kind]([content for _, content in asked])
            except BadInput as raised:
                if len(asked) > 1:
                    self._one_by_one(asked, self.answers[kind])
                else:
                    asked[0][0].reply(None, raised)
                continue
            for (row, _), reply in zip(asked, replies, strict=True):
                row.reply(reply)

    def _one_by_one(self, asked: Sequence[tuple[Row, Any]], answer: Answer) -> None:
        """One question may spoil a batch: only its own row hears of it."""
        for row, content in asked:
            try:
                (reply,) = answer([content])
            except BadInput as raised:
                row.reply(None, raised)
            else:
                row.reply(reply)


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
