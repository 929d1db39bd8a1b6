"""The judgments of one round's collection: who gets which task, what is taken and what refused.

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
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from posttrain.annotate.answers import Answer, Refused, Side, checked, judgment_of, stated
from posttrain.annotate.database import (
    COLUMNS,
    Database,
    find_task,
    insert_judgment,
    judgment_from,
    recount,
)
from posttrain.annotate.dealing import (
    counts_of,
    end_leases,
    free_task,
    gold_is_due,
    is_free,
    lease_task,
    side_for,
)
from posttrain.errors import BadInput
from posttrain.judgments.heeded import NOBODY
from posttrain.rows import Judgment, Task, content_id

NEW, KNOWN = "new", "known"
"""What became of a judgment that was made elsewhere."""
BLOCK = 10
"""Shared judgments by which an annotator's agreement grows."""


class Offered(NamedTuple):
    """A task for one annotator."""

    task: Task
    first: Side
    """Which response is shown first."""


class Progress(NamedTuple):
    """How far a collection is; tasks with a known answer are not among what is wanted."""

    judgments_wanted: int
    judged: int
    mine: int
    """What one annotator did, tasks with a known answer among it."""
    shown: tuple[int, int] = (0, 0)
    """Judged and wanted as annotators see them: tasks with a known answer are in both, so that none
    is told by its number."""
    shared: int = 0
    """Judgments of others on tasks that this annotator judged too, skips aside: full blocks of
    `BLOCK`, so that nobody learns what somebody else said of one task."""
    agreed: int = 0
    """How many of them chose the same side."""


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
        self._file = Database(path)
        self._lease_seconds, self._clock = lease_seconds, clock

    def publish(
        self, tasks: Sequence[Task], gold_share: float = 0.0, forbidden: Sequence[str] = ()
    ) -> None:
        """Put up the tasks in their order; the same ones twice change nothing.

        Args:
            tasks: One with `times` wants as many judgments, each by somebody else.
            gold_share: Of all that an annotator gets: tasks with a known answer, which go to
                everybody.
            forbidden: Texts that no edit may hold, such as `<|eot_id|>`.

        Raises:
            BadInput: other tasks stand there already.
        """
        bodies = [json.dumps(task.to_json(), ensure_ascii=False) for task in tasks]
        content = content_id(bodies)
        with self._file.writing() as db:
            known = db.execute("select value from meta where key = 'tasks'").fetchone()
            if known is not None:
                if known[0] != content:
                    raise BadInput(
                        f"{self._file.path}: holds the collection of other tasks; move it away "
                        "to begin anew"
                    )
                return
            times = [0 if task.gold else task.times or 1 for task in tasks]
            told = {
                "tasks": content,
                "wanted": str(sum(times)),
                "gold_share": str(gold_share),
                "forbidden": json.dumps(list(forbidden)),
            }
            db.executemany("insert into meta values (?, ?)", told.items())
            rows = zip(tasks, bodies, times, strict=True)
            db.executemany(
                "insert into task values (?, ?, ?, ?, ?, ?)",
                (
                    (task.id, place, num, num, int(task.gold is not None), body)
                    for place, (task, body, num) in enumerate(rows)
                ),
            )

    def add_annotator(self, name: str) -> str:
        """A new personal token of an annotator, who is made where there is none of that name.

        Only its hash is kept; earlier tokens of the name end.

        Raises:
            BadInput: a name that nobody can have.
        """
        _check_name(name)
        token = secrets.token_urlsafe(24)
        with self._file.writing() as db:
            db.execute(
                "insert into annotator (id, token) values (?, ?) "
                "on conflict (id) do update set token = excluded.token",
                (name, _hashed(token)),
            )
        return token

    def annotators(self) -> list[str]:
        """Everybody who has a link."""
        rows = self._file.reading().execute(
            "select id from annotator where token is not null order by id"
        )
        return [str(row[0]) for row in rows]

    def annotator_of(self, token: str) -> str | None:
        """Whose token it is."""
        row = self._file.reading().execute(
            "select id from annotator where token = ?", (_hashed(token),)
        )
        found = row.fetchone()
        return None if found is None else str(found[0])

    def next_task(self, annotator: str) -> Offered | None:
        """The task that an annotator has open, else the first that is free; None: there is none.

        Raises:
            Refused: the collection is closed, or there is no such annotator.
        """
        now = self._clock()
        with self._file.writing() as db:
            _check_open(db)
            counts = counts_of(db, annotator)
            end_leases(db, now - self._lease_seconds)
            held = db.execute(
                "select task, first from lease where annotator = ? and ended = 0 "
                "order by opened desc, rowid desc",
                (annotator,),
            ).fetchone()
            if held is not None:
                return Offered(_known(db, held[0]), held[1])
            found = free_task(db, annotator, gold_is_due(db, annotator, counts))
            if found is None:
                return None
            seen = db.execute(
                "select first from lease where task = ? and annotator = ?", (found, annotator)
            ).fetchone()
            first = seen[0] if seen is not None else side_for(counts, found, annotator)
            lease_task(db, found, annotator, first, now)
            if seen is None:
                column = "a_first" if first == "a" else "b_first"
                db.execute(
                    f"update annotator set {column} = {column} + 1 where id = ?", (annotator,)
                )
            return Offered(_known(db, found), first)

    def submit(
        self, annotator: str, task_id: str, answer: Answer, shown: Side | None = None
    ) -> Judgment:
        """Keep a judgment; it is on disk when this returns. The same one twice is kept once.

        Args:
            annotator: Who judges.
            task_id: What is judged; a task that was left open for too long is taken if nobody else
                has it.
            answer: By the side that was shown first.
            shown: The response that stood first on the page that was sent.

        Raises:
            Refused: closed, an unknown task or annotator, judged otherwise before, no longer open
                to this annotator, shown the other way round, or an answer that states no judgment.
        """
        now = self._clock()
        with self._file.writing() as db:
            _check_open(db)
            counts_of(db, annotator)
            end_leases(db, now - self._lease_seconds)
            task = _known(db, task_id)
            before = _standing(db, task_id, annotator)
            lease = db.execute(
                "select first, opened from lease where task = ? and annotator = ?",
                (task_id, annotator),
            ).fetchone()
            if before is None and (lease is None or not is_free(db, task, annotator)):
                raise Refused("this task was not given to you, or somebody else has it by now")
            first = before.first or "a" if before is not None else lease[0]
            if shown is not None and shown != first:
                raise Refused("the responses stood the other way round on that page")
            judgment = judgment_of(task, annotator, first, answer, _forbidden(db))
            if before is not None:
                if stated(before) != stated(judgment):
                    raise Refused("you have judged this task; undo that first")
                return before
            seconds = max(0.0, round(now - lease[1], 3))
            timed = judgment.model_copy(update={"first": first, "seconds": seconds})
            made = insert_judgment(db, timed, now, _is_shared(task))
            db.execute("delete from lease where task = ? and annotator = ?", (task_id, annotator))
            recount(db, task_id, annotator, 1)
            return made

    def undo(self, annotator: str) -> str | None:
        """Take back an annotator's last judgment and open its task again; None: there is none.

        Raises:
            Refused: the collection is closed.
        """
        now = self._clock()
        with self._file.writing() as db:
            _check_open(db)
            row = db.execute(
                "select number, task, first from judgment where annotator = ? and undone is null "
                "order by number desc limit 1",
                (annotator,),
            ).fetchone()
            if row is None:
                return None
            db.execute("update judgment set undone = ? where number = ?", (now, row[0]))
            recount(db, row[1], annotator, -1)
            if is_free(db, _known(db, row[1]), annotator):
                # The newest lease is the one that is offered.
                lease_task(db, row[1], annotator, row[2] or "a", now)
            return str(row[1])

    def take(self, judgments: Iterable[Judgment]) -> list[str]:
        """Keep judgments that were made elsewhere, all of them or, killed in between, none.

        Who made them is an annotator from then on, without a link. The same judgment twice is
        kept once.

        Returns:
            For each, "new" or "known", else why it was refused.

        Raises:
            Refused: the collection is closed.
        """
        with self._file.writing() as db:
            _check_open(db)
            return [self._taken(db, one) for one in judgments]

    def _taken(self, db: sqlite3.Connection, one: Judgment) -> str:
        try:
            _check_name(one.annotator)
            made = checked(_known(db, one.task), one, _forbidden(db))
            at = self._clock() if one.at is None else datetime.fromisoformat(one.at).timestamp()
        except (Refused, BadInput, ValueError) as error:
            return str(error)
        before = _standing(db, one.task, one.annotator)
        if before is not None:
            same = stated(before) == stated(made)
            return KNOWN if same else f"{one.annotator} has judged {one.task} otherwise"
        db.execute("insert or ignore into annotator (id) values (?)", (one.annotator,))
        insert_judgment(db, made, at, _is_shared(_known(db, one.task)))
        db.execute("delete from lease where task = ? and annotator = ?", (one.task, one.annotator))
        recount(db, one.task, one.annotator, 1)
        return NEW

    def progress(self, annotator: str = "") -> Progress:
        """How far the collection is, and how much of it one annotator did."""
        db = self._file.reading()
        wanted = int(db.execute("select value from meta where key = 'wanted'").fetchone()[0])
        # What came in beyond a task's wish makes up for no other task.
        left = db.execute("select coalesce(sum(open), 0) from task where open > 0").fetchone()[0]
        mine = db.execute(
            "select coalesce(sum(done + gold_done), 0) from annotator where id = ?", (annotator,)
        ).fetchone()[0]
        same = db.execute(
            "select mine.choice = other.choice from judgment mine "
            "join judgment other on other.task = mine.task and other.number <> mine.number "
            "where mine.shared > 0 and mine.undone is null and mine.annotator = ? "
            "and other.shared > 0 and other.undone is null "
            "and mine.choice <> 'skip' and other.choice <> 'skip' "
            "order by max(mine.number, other.number)",
            (annotator,),
        ).fetchall()
        blocks = [row[0] for row in same[: len(same) // BLOCK * BLOCK]]
        shown = _shown(db, wanted - left, wanted)
        return Progress(wanted, wanted - left, mine, shown, len(blocks), sum(blocks))

    def judgments(self) -> list[Judgment]:
        """Every judgment that stands, in the order in which they came."""
        rows = self._file.reading().execute(
            f"select {COLUMNS} from judgment where undone is null order by number"
        )
        return [judgment_from(row) for row in rows]

    def close(self) -> None:
        """End the collection: from now on nothing is taken, undone or offered."""
        with self._file.writing() as db:
            db.execute("insert or ignore into meta values ('closed', ?)", (str(self._clock()),))

    @property
    def closed(self) -> bool:
        """Whether the collection has ended."""
        return _is_closed(self._file.reading())


def _is_closed(db: sqlite3.Connection) -> bool:
    return db.execute("select 1 from meta where key = 'closed'").fetchone() is not None


def _check_open(db: sqlite3.Connection) -> None:
    if _is_closed(db):
        raise Refused("this collection is closed")


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > 100:
        raise BadInput(f"an annotator's name has 1 to 100 characters, got {name[:20]!r}")
    if name == NOBODY:
        raise BadInput(f"no annotator can be called {NOBODY}: it stands for missing judgments")


def _known(db: sqlite3.Connection, task_id: str) -> Task:
    task = find_task(db, task_id)
    if task is None:
        raise Refused(f"there is no task {task_id}")
    return task


def _standing(db: sqlite3.Connection, task_id: str, annotator: str) -> Judgment | None:
    """The judgment of somebody on a task that was not undone."""
    row = db.execute(
        f"select {COLUMNS} from judgment where task = ? and annotator = ? and undone is null",
        (task_id, annotator),
    ).fetchone()
    return None if row is None else judgment_from(row)


def _forbidden(db: sqlite3.Connection) -> list[str]:
    row = db.execute("select value from meta where key = 'forbidden'").fetchone()
    return [str(text) for text in json.loads(row[0])]


def _shown(db: sqlite3.Connection, judged: int, wanted: int) -> tuple[int, int]:
    """The numbers with tasks whose answer is known: as many as there will be, as far as we know."""
    share = float(db.execute("select value from meta where key = 'gold_share'").fetchone()[0])
    done = db.execute("select coalesce(sum(gold_done), 0) from annotator").fetchone()[0]
    expected = round(wanted * share / (1 - share))
    return judged + done, wanted + max(done, expected)


def _is_shared(task: Task) -> bool:
    return task.gold is None and (task.times or 1) > 1


def _hashed(token: str) -> str:
    return sha256(token.encode()).hexdigest()
