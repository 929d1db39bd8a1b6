"""The judgments of one round's collection, in an SQLite file (WAL, `synchronous=FULL`).

One transaction a judgment, acknowledged only once it is on disk; a killed server loses nothing that
was acknowledged. Knows tasks, annotators, who has which task open, and undo. Knows no page.

    store = Store(Path("annotations/my/round-1.sqlite"))
    store.publish(tasks)
    offered = store.next_task("ana")
    store.submit("ana", offered.task.id, Answer(choice="first", strength=Strength.BETTER))
"""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.annotate.answers import Answer, Refused, Side, judgment_of, stated
from posttrain.errors import BadInput
from posttrain.rows import Judgment, Message, Task, content_id, stable_seed

BUSY_SECONDS = 30.0
"""How long a transaction waits for another one."""
SCHEMA = """
create table if not exists meta (key text primary key, value text not null) strict;
create table if not exists task (
  id text primary key, place integer not null, open integer not null, body text not null
) strict;
create index if not exists open_tasks on task (place) where open > 0;
create table if not exists annotator (
  id text primary key, token text not null unique, a_first integer not null default 0,
  b_first integer not null default 0
) strict;
create table if not exists lease (
  task text not null, annotator text not null, first text not null, opened real not null,
  primary key (task, annotator)
) strict;
create table if not exists judgment (
  number integer primary key, task text not null, annotator text not null, choice text not null,
  strength text, edited text, reason text not null, first text not null, opened real not null,
  at real not null, undone real
) strict;
create unique index if not exists one_each on judgment (task, annotator) where undone is null;
create index if not exists by_annotator on judgment (annotator, number);
"""
"""`open` counts the judgments that a task still wants."""


class Offered(NamedTuple):
    """A task for one annotator."""

    task: Task
    first: Side
    """Which response is shown first."""


class Progress(NamedTuple):
    """How far a collection is."""

    judgments_wanted: int
    judged: int
    mine: int


class Store:
    """One collection. May be shared by threads."""

    def __init__(
        self, path: Path, lease_seconds: float = 1800.0, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the file, or make it.

        Args:
            path: Of the SQLite file.
            lease_seconds: After which a task that somebody has open is offered to others.
            clock: Seconds since 1970.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._lease_seconds, self._clock = path, lease_seconds, clock
        self._threads = threading.local()
        with self._writing() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)

    def publish(self, tasks: Sequence[Task]) -> None:
        """Put up the tasks in their order; the same ones twice change nothing.

        A task with `times` wants as many judgments, each by somebody else.

        Raises:
            BadInput: other tasks stand there already.
        """
        bodies = [json.dumps(task.to_json(), ensure_ascii=False) for task in tasks]
        content = content_id(bodies)
        with self._writing() as db:
            known = db.execute("select value from meta where key = 'tasks'").fetchone()
            if known is not None:
                if known[0] != content:
                    raise BadInput(f"{self._path}: holds the collection of other tasks")
                return
            db.execute("insert into meta values ('tasks', ?)", (content,))
            db.executemany(
                "insert into task values (?, ?, ?, ?)",
                (
                    (task.id, place, int((task.model_extra or {}).get("times", 1)), body)
                    for place, (task, body) in enumerate(zip(tasks, bodies, strict=True))
                ),
            )

    def add_annotator(self, name: str) -> str:
        """A new personal token of an annotator, who is made where there is none of that name.

        Only its hash is kept; earlier tokens of the name end.
        """
        if not name.strip() or len(name) > 100:
            raise BadInput(f"an annotator's name has 1 to 100 characters, got {name[:20]!r}")
        token = secrets.token_urlsafe(24)
        with self._writing() as db:
            db.execute(
                "insert into annotator (id, token) values (?, ?) "
                "on conflict (id) do update set token = excluded.token",
                (name, _hashed(token)),
            )
        return token

    def annotators(self) -> list[str]:
        """Everybody who has a link."""
        return [str(row[0]) for row in self._db().execute("select id from annotator order by id")]

    def annotator_of(self, token: str) -> str | None:
        """Whose token it is."""
        row = self._db().execute("select id from annotator where token = ?", (_hashed(token),))
        found = row.fetchone()
        return None if found is None else str(found[0])

    def next_task(self, annotator: str) -> Offered | None:
        """The task that an annotator has open, else the first that is free; None: there is none.

        Raises:
            Refused: the collection is closed, or there is no such annotator.
        """
        now = self._clock()
        with self._writing() as db:
            self._check_open(db)
            counts = _counts(db, annotator)
            db.execute("delete from lease where opened < ?", (now - self._lease_seconds,))
            held = db.execute(
                "select task, first from lease where annotator = ? "
                "order by opened desc, rowid desc",
                (annotator,),
            ).fetchone()
            if held is not None:
                return Offered(_task(db, held[0]), held[1])
            free = db.execute(
                "select id from task t where open > 0 "
                "and not exists (select 1 from judgment j where j.task = t.id "
                "  and j.annotator = ? and j.undone is null) "
                "and open > (select count(*) from lease l where l.task = t.id) "
                "order by place limit 1",
                (annotator,),
            ).fetchone()
            if free is None:
                return None
            first = _side(counts, free[0], annotator)
            db.execute("insert into lease values (?, ?, ?, ?)", (free[0], annotator, first, now))
            column = "a_first" if first == "a" else "b_first"
            db.execute(f"update annotator set {column} = {column} + 1 where id = ?", (annotator,))
            return Offered(_task(db, free[0]), first)

    def submit(self, annotator: str, task_id: str, answer: Answer) -> Judgment:
        """Keep a judgment; it is on disk when this returns. The same one twice is kept once.

        Raises:
            Refused: closed, an unknown task or annotator, judged otherwise before, no longer open
                to this annotator, or an answer that states no judgment.
        """
        now = self._clock()
        with self._writing() as db:
            self._check_open(db)
            _counts(db, annotator)
            if db.execute("select 1 from task where id = ?", (task_id,)).fetchone() is None:
                raise Refused(f"there is no task {task_id}")
            task = _task(db, task_id)
            before = db.execute(
                "select * from judgment where task = ? and annotator = ? and undone is null",
                (task_id, annotator),
            ).fetchone()
            lease = db.execute(
                "select first, opened from lease where task = ? and annotator = ?",
                (task_id, annotator),
            ).fetchone()
            if before is not None:
                first = before[7]
            elif lease is None:
                raise Refused("this task was not given to you, or it was too long ago")
            else:
                first = lease[0]
            judgment = judgment_of(task, annotator, first, answer)
            if before is not None:
                if stated(_from_row(before)) != stated(judgment):
                    raise Refused("you have judged this task; undo that first")
                return _from_row(before)
            edited = None if judgment.edited is None else judgment.edited[-1].content
            db.execute(
                "insert into judgment (task, annotator, choice, strength, edited, reason, first, "
                "opened, at) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    task_id,
                    annotator,
                    judgment.choice,
                    judgment.strength,
                    edited,
                    judgment.reason,
                    first,
                    lease[1],
                    now,
                ),
            )
            db.execute("delete from lease where task = ? and annotator = ?", (task_id, annotator))
            db.execute("update task set open = open - 1 where id = ?", (task_id,))
            row = db.execute("select * from judgment where number = last_insert_rowid()")
            return _from_row(row.fetchone())

    def undo(self, annotator: str) -> str | None:
        """Take back an annotator's last judgment and open its task again; None: there is none.

        Raises:
            Refused: the collection is closed.
        """
        now = self._clock()
        with self._writing() as db:
            self._check_open(db)
            row = db.execute(
                "select number, task, first from judgment where annotator = ? and undone is null "
                "order by number desc limit 1",
                (annotator,),
            ).fetchone()
            if row is None:
                return None
            db.execute("update judgment set undone = ? where number = ?", (now, row[0]))
            db.execute("update task set open = open + 1 where id = ?", (row[1],))
            # The newest lease is the one that is offered.
            db.execute(
                "insert or replace into lease values (?, ?, ?, ?)", (row[1], annotator, row[2], now)
            )
            return str(row[1])

    def progress(self, annotator: str = "") -> Progress:
        """How far the collection is, and how much of it one annotator did."""
        db = self._db()
        left = db.execute("select coalesce(sum(open), 0) from task where open > 0").fetchone()[0]
        done, mine = db.execute(
            "select count(*), coalesce(sum(annotator = ?), 0) from judgment where undone is null",
            (annotator,),
        ).fetchone()
        return Progress(left + done, done, mine)

    def judgments(self) -> list[Judgment]:
        """Every judgment that stands, in the order in which they came."""
        rows = self._db().execute("select * from judgment where undone is null order by number")
        return [_from_row(row) for row in rows]

    def close(self) -> None:
        """End the collection: from now on nothing is taken, undone or offered."""
        with self._writing() as db:
            db.execute("insert or ignore into meta values ('closed', ?)", (str(self._clock()),))

    @property
    def closed(self) -> bool:
        """Whether the collection has ended."""
        return self._db().execute("select 1 from meta where key = 'closed'").fetchone() is not None

    def _check_open(self, db: sqlite3.Connection) -> None:
        if db.execute("select 1 from meta where key = 'closed'").fetchone() is not None:
            raise Refused("this collection is closed")

    def _db(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: sqlite3.Connection | None = getattr(self._threads, "db", None)
        if found is None:
            found = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            found.execute("pragma journal_mode = wal")
            found.execute("pragma synchronous = full")
            self._threads.db = found
        return found

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on disk when the block ends, or has never been."""
        db = self._db()
        db.execute("begin immediate")
        try:
            yield db
        except BaseException:
            db.execute("rollback")
            raise
        db.execute("commit")


def _hashed(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def _counts(db: sqlite3.Connection, annotator: str) -> tuple[int, int]:
    row = db.execute("select a_first, b_first from annotator where id = ?", (annotator,)).fetchone()
    if row is None:
        raise Refused(f"there is no annotator {annotator}")
    return int(row[0]), int(row[1])


def _side(counts: tuple[int, int], task_id: str, annotator: str) -> Side:
    """The response that is shown first: each annotator sees both sides equally often."""
    if counts[0] != counts[1]:
        return "a" if counts[0] < counts[1] else "b"
    return "ab"[stable_seed("first", task_id, annotator) % 2]  # type: ignore[return-value]


def _task(db: sqlite3.Connection, task_id: str) -> Task:
    row = db.execute("select body from task where id = ?", (task_id,)).fetchone()
    return Task.model_validate_json(row[0])


def _from_row(row: Sequence[Any]) -> Judgment:
    """A judgment as a row of the export, with when it was made and how long it took."""
    _, task, annotator, choice, strength, edited, reason, first, opened, at, _ = row
    turns = None if edited is None else (Message(role="assistant", content=edited),)
    return Judgment.model_validate(
        {
            "id": f"{task}/{annotator}",
            "parents": (task,),
            "task": task,
            "choice": choice,
            "strength": strength,
            "edited": turns,
            "annotator": annotator,
            "reason": reason,
            "first": first,
            "seconds": round(at - opened, 3),
            "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        }
    )
