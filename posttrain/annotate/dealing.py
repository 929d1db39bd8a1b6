"""Who gets which task: what is free, when one with a known answer is due, which side stands first.

Works inside a transaction of the store; keeps no judgment and refuses nobody but strangers.

    counts = counts_of(db, "ana")
    free_task(db, "ana", gold_is_due(db, "ana", counts))
"""

import sqlite3
from collections.abc import Sequence

from posttrain.annotate.answers import Refused, Side
from posttrain.rows import Task, stable_seed


def free_task(db: sqlite3.Connection, annotator: str, gold: bool) -> str | None:
    """The first task that an annotator can have: one with a known answer where it is due."""
    mine = "select 1 from judgment j where j.task = t.id and j.annotator = ? and j.undone is null"
    if gold:
        found = db.execute(
            f"select id from task t where gold > 0 and not exists ({mine}) order by place limit 1",
            (annotator,),
        ).fetchone()
        if found is not None:
            return str(found[0])
    found = db.execute(
        f"select id from task t where open > 0 and not exists ({mine}) and open > "
        "(select count(*) from lease l where l.task = t.id and ended = 0) order by place limit 1",
        (annotator,),
    ).fetchone()
    return None if found is None else str(found[0])


def is_free(db: sqlite3.Connection, task: Task, annotator: str) -> bool:
    """Whether a task still wants a judgment that nobody else is about to make."""
    if task.gold is not None:
        return True
    left, others = db.execute(
        "select open, (select count(*) from lease l where l.task = t.id and ended = 0 "
        "and annotator <> ?) from task t where id = ?",
        (annotator, task.id),
    ).fetchone()
    return bool(left > others)


def end_leases(db: sqlite3.Connection, opened_before: float) -> None:
    """Offer to others what somebody has had open for too long; the order they saw is kept."""
    db.execute("update lease set ended = 1 where ended = 0 and opened < ?", (opened_before,))


def lease_task(db: sqlite3.Connection, task: str, annotator: str, first: str, now: float) -> None:
    """Give a task to somebody, the newest of theirs."""
    row = (task, annotator, first, now)
    db.execute("insert or replace into lease values (?, ?, ?, ?, 0)", row)


def gold_is_due(db: sqlite3.Connection, annotator: str, counts: tuple[int, ...]) -> bool:
    """Whether the next task of an annotator has a known answer: one of each block, anywhere."""
    share = float(db.execute("select value from meta where key = 'gold_share'").fetchone()[0])
    if not share:
        return False
    *_, done, gold_done = counts
    size = max(1, round(1 / share))
    block, place = divmod(done + gold_done, size)
    due = place >= stable_seed("gold", annotator, block) % size
    return gold_done < block + due


def counts_of(db: sqlite3.Connection, annotator: str) -> tuple[int, ...]:
    """How often `a` and `b` stood first, and what was done; of the tasks, and of those known."""
    row = db.execute(
        "select a_first, b_first, done, gold_done from annotator where id = ?", (annotator,)
    ).fetchone()
    if row is None:
        raise Refused(f"there is no annotator {annotator}")
    return tuple(int(count) for count in row)


def side_for(counts: Sequence[int], task_id: str, annotator: str) -> Side:
    """The response that is shown first: each annotator sees both sides equally often."""
    if counts[0] != counts[1]:
        return "a" if counts[0] < counts[1] else "b"
    return "b" if stable_seed("first", task_id, annotator) % 2 else "a"
