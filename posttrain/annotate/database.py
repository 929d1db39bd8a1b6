"""The SQLite file of a collection: its tables, its transactions, and rows as judgments.

WAL with `synchronous=FULL`: what a transaction has written is on disk when it ends. Knows no rule
of who may judge what.

    database = Database(Path("annotations/my/round-1.sqlite"))
    with database.writing() as db:
        db.execute("insert into meta values ('closed', '1')")
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain.rows import Judgment, Task

BUSY_SECONDS = 30.0
"""How long a transaction waits for another one."""
SCHEMA = """
create table if not exists meta (key text primary key, value text not null) strict;
create table if not exists task (
  id text primary key, place integer not null, times integer not null, open integer not null,
  gold integer not null, body text not null
) strict;
create index if not exists open_tasks on task (place, open) where open > 0;
create index if not exists gold_tasks on task (place) where gold > 0;
create table if not exists annotator (
  id text primary key, token text unique, a_first integer not null default 0,
  b_first integer not null default 0, done integer not null default 0,
  gold_done integer not null default 0
) strict;
create table if not exists lease (
  task text not null, annotator text not null, first text not null, opened real not null,
  ended integer not null default 0, primary key (task, annotator)
) strict;
create table if not exists judgment (
  number integer primary key, task text not null, annotator text not null, choice text not null,
  strength text, edited text, reason text not null, first text, seconds real, at real not null,
  shared integer not null, undone real
) strict;
create unique index if not exists one_each on judgment (task, annotator) where undone is null;
create index if not exists by_annotator on judgment (annotator, number);
create index if not exists on_shared on judgment (task, choice) where shared > 0 and undone is null;
"""
"""`open` counts the judgments that a task still wants of its `times`; a `gold` one wants none, and
each annotator may get it. `done` and `gold_done` count an annotator's judgments that stand, so that
no page has to. A lease that has `ended` keeps the order in which somebody saw the task. `shared`
marks judgments of tasks that several people judge."""
COLUMNS = "number, task, annotator, choice, strength, edited, reason, first, seconds, at"
"""Of a judgment, in the order in which `judgment_from` takes them."""


class Database:
    """The file of one collection; each thread has its own connection."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._threads = threading.local()
        # SQLite lets writers poll for their turn, up to a tenth of a second at a time.
        self._turn = threading.Lock()
        with self.writing() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)

    def reading(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: sqlite3.Connection | None = getattr(self._threads, "db", None)
        if found is None:
            found = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            found.execute("pragma journal_mode = wal")
            found.execute("pragma synchronous = full")
            self._threads.db = found
        return found

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on disk when the block ends, or has never been."""
        db = self.reading()
        with self._turn:
            db.execute("begin immediate")
            try:
                yield db
            except BaseException:
                db.execute("rollback")
                raise
            db.execute("commit")


def insert_judgment(db: sqlite3.Connection, made: Judgment, at: float, shared: bool) -> Judgment:
    """Keep a judgment of which the caller knows that it may stand; the row as it stands now."""
    edited = None
    if made.edited is not None:
        edited = json.dumps([turn.to_json() for turn in made.edited], ensure_ascii=False)
    db.execute(
        "insert into judgment (task, annotator, choice, strength, edited, reason, first, seconds, "
        "at, shared) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            made.task,
            made.annotator,
            made.choice,
            made.strength,
            edited,
            made.reason,
            made.first,
            made.seconds,
            at,
            int(shared),
        ),
    )
    row = db.execute(f"select {COLUMNS} from judgment where number = last_insert_rowid()")
    return judgment_from(row.fetchone())


def recount(db: sqlite3.Connection, task_id: str, annotator: str, change: int) -> None:
    """Bring the counters up to date once a judgment came (`change` 1) or went (−1)."""
    db.execute(
        "update task set open = max(0, times - (select count(*) from judgment j "
        "where j.task = task.id and j.undone is null)) where id = ? and gold = 0",
        (task_id,),
    )
    gold, left = db.execute("select gold, open from task where id = ?", (task_id,)).fetchone()
    if not gold and not left:
        # Judgments that were brought in may have come before those of whoever has it open.
        db.execute("update lease set ended = 1 where task = ?", (task_id,))
    column = "gold_done" if gold else "done"
    db.execute(f"update annotator set {column} = {column} + ? where id = ?", (change, annotator))


def find_task(db: sqlite3.Connection, task_id: str) -> Task | None:
    """A task by its id."""
    row = db.execute("select body from task where id = ?", (task_id,)).fetchone()
    return None if row is None else Task.model_validate_json(row[0])


def judgment_from(row: Sequence[Any]) -> Judgment:
    """A judgment as a row of the export, with when it was made and how long it took."""
    _, task, annotator, choice, strength, edited, reason, first, seconds, at = row
    return Judgment.model_validate(
        {
            "id": f"{task}/{annotator}",
            "parents": (task,),
            "task": task,
            "choice": choice,
            "strength": strength,
            "edited": None if edited is None else json.loads(edited),
            "annotator": annotator,
            "reason": reason,
            "first": first,
            "seconds": seconds,
            "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        }
    )
