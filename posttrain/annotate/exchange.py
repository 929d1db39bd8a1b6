"""A collection as files for others' tools, and judgments made with them brought back.

`label-studio`: a project's tasks and its interface. `jsonl` and `parquet`: one row a task with its
two responses in the order shown, and the judgments so far, which round-trip to the bit. None of
them tells which model wrote what, or which tasks have a known answer.

    export_collection(collection, "jsonl", Path("tasks.jsonl"))
    import_judgments(collection, Path("tasks.jsonl"), "jsonl", {}, reject_share=0.01)
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, Field

from posttrain.annotate import label_studio
from posttrain.annotate.answers import Side, side_of, with_edit
from posttrain.annotate.collection import Collection
from posttrain.annotate.label_studio import first_side
from posttrain.annotate.store import KNOWN, NEW
from posttrain.errors import BadInput
from posttrain.rows import Judgment, Strength, Task, stable_seed
from posttrain.tables import (
    Reject,
    check_share,
    complaint,
    excerpt,
    parse_row,
    raw_rows,
    write_json,
    write_rows,
)

Kind = Literal["label-studio", "jsonl", "parquet"]
Place = Literal["first", "second"]


class ExchangedJudgment(BaseModel):
    """A judgment by the places in which the row has the responses."""

    model_config = ConfigDict(frozen=True)

    annotator: str
    choice: Literal["first", "second", "tie", "skip"]
    strength: Strength | None = None
    edited: str | None = None
    """The chosen response as it should read."""
    reason: str = ""
    shown: Place | None = None
    """Which of them this annotator saw first."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    at: str | None = None


class ExchangedTask(BaseModel):
    """A task as others' tools see it; `first` and `second` are read by people, not by us."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    judgments: tuple[dict[str, Any], ...] = ()
    """Rows of `ExchangedJudgment`; one that is none must not cost the others."""


class Exported(NamedTuple):
    """What an export wrote."""

    files: list[Path]
    num_tasks: int
    num_left_out: int
    """Tasks that have all their judgments already."""


class Imported(NamedTuple):
    """What became of the judgments of a file."""

    taken: int
    rejects: list[Reject]


def export_collection(collection: Collection, kind: Kind, out: Path) -> Exported:
    """Write a collection's tasks for another tool.

    Args:
        collection: Whose tasks.
        kind: For `label-studio` a folder with `tasks.json` and `interface.xml`, those tasks that
            still want judgments; for `jsonl` and `parquet` a file with all tasks.
        out: Where to.

    Raises:
        BadInput: nothing is left to judge, or `out` has another ending than its kind.
    """
    judged: dict[str, list[Judgment]] = defaultdict(list)
    for one in collection.store.judgments():
        judged[one.task].append(one)
    tasks = _mingled(collection.tasks)
    if kind == "label-studio":
        left = [t for t in tasks if len(judged[t.id]) < (t.times or 1)]
        if not any(task.gold is None for task in left):
            raise BadInput("every task has all its judgments: there is nothing to export")
        files = [out / "tasks.json", out / "interface.xml"]
        out.mkdir(parents=True, exist_ok=True)
        files[1].write_text(label_studio.CONFIG.read_text())
        write_json(files[0], label_studio.project_tasks(left))
        return Exported(files, len(left), len(collection.tasks) - len(left))
    if out.suffix != f".{kind}":
        raise BadInput(f"--out {out}: expected a .{kind} file")
    rows = [_row(task, judged[task.id]) for task in tasks]
    if kind == "jsonl":
        write_rows(out, rows)
    else:
        _write_parquet(out, rows)
    return Exported([out], len(rows), 0)


def import_judgments(
    collection: Collection, path: Path, kind: Kind, people: Mapping[int, str], reject_share: float
) -> Imported:
    """Bring judgments into a collection; those that it knows already change nothing.

    Args:
        collection: Where to.
        path: What `export_collection` wrote, with judgments; Label Studio's export `JSON`.
        kind: The file's format.
        people: Label Studio's numbers of users → annotators.
        reject_share: Share of the judgments that may state none; past it nothing is taken.

    Raises:
        BadInput: the file is of another format, or too much of it states nothing.
        Refused: the collection is closed.
    """
    if kind == "label-studio":
        judgments, rejects = label_studio.judgments_of(
            _json(path), collection.tasks, people, path.name
        )
    else:
        judgments, rejects = _read(path, collection.tasks)
    total = len(judgments) + len(rejects)
    check_share(rejects, total, reject_share, "resources.reject_share")
    told = collection.store.take([one for _, one in judgments])
    rejects += [
        Reject(path.name, line, reason, f"{one.task} by {one.annotator}")
        for (line, one), reason in zip(judgments, told, strict=True)
        if reason not in (NEW, KNOWN)
    ]
    return Imported(told.count(NEW), rejects)


def _mingled(tasks: Sequence[Task]) -> list[Task]:
    """The tasks in their order, those with a known answer at places that say nothing."""
    order = [task for task in tasks if task.gold is None]
    for task in tasks:
        if task.gold is not None:
            order.insert(stable_seed("mingled", task.id) % (len(order) + 1), task)
    return order


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({error})") from error


def _row(task: Task, judgments: Iterable[Judgment]) -> dict[str, Any]:
    order = first_side(task)
    first, second = ([turn.to_json() for turn in side] for side in task.sides(order))
    made = []
    for one in judgments:
        exchanged = ExchangedJudgment(
            annotator=one.annotator,
            choice=_place(one.choice, order) if one.choice in ("a", "b") else one.choice,
            strength=one.strength,
            edited=None if one.edited is None else one.edited[-1].content,
            reason=one.reason,
            shown=None if one.first is None else _place(one.first, order),
            seconds=one.seconds,
            at=one.at,
        )
        made.append(exchanged.model_dump(mode="json", exclude_none=True))
    return {
        "id": task.id,
        "prompt": [turn.to_json() for turn in task.prompt],
        "first": first,
        "second": second,
        "capability": task.capability,
        "wanted": max(task.times or 1, len(made)),
        "judgments": made,
    }


def _place(side: str, order: Side) -> Place:
    return "first" if side == order else "second"


def _read(path: Path, tasks: Sequence[Task]) -> tuple[list[tuple[int, Judgment]], list[Reject]]:
    """The judgments of a file with their lines, and what is none."""
    known = {task.id: task for task in tasks}
    rejects: list[Reject] = []
    judgments: list[tuple[int, Judgment]] = []
    for line, raw in raw_rows(path):
        row = parse_row(raw, ExchangedTask)
        if isinstance(row, str):
            rejects.append(Reject(path.name, line, row, excerpt(raw)))
            continue
        task = known.get(row.id)
        if task is None:
            rejects.append(Reject(path.name, line, f"there is no task {row.id}"))
            continue
        for one in row.judgments:
            try:
                made = _judgment(task, ExchangedJudgment.model_validate(one))
            except ValueError as error:
                reason = f"{row.id}: {complaint(error)}"
                rejects.append(Reject(path.name, line, reason, excerpt(one)))
            else:
                judgments.append((line, made))
    return judgments, rejects


def _judgment(task: Task, one: ExchangedJudgment) -> Judgment:
    order = first_side(task)
    choice = side_of(one.choice, order)
    edited = with_edit(task, choice, one.edited)
    return Judgment.model_validate(
        {
            "id": f"{task.id}/{one.annotator}",
            "parents": (task.id,),
            "task": task.id,
            "choice": choice,
            "strength": one.strength,
            "edited": edited,
            "annotator": one.annotator,
            "reason": one.reason,
            "first": None if one.shown is None else side_of(one.shown, order),
            "seconds": one.seconds,
            "at": one.at,
        }
    )


_MESSAGES = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string())])
)
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", _MESSAGES),
        ("first", _MESSAGES),
        ("second", _MESSAGES),
        ("capability", pa.string()),
        ("wanted", pa.int64()),
        (
            "judgments",
            pa.list_(
                pa.struct(
                    [
                        ("annotator", pa.string()),
                        ("choice", pa.string()),
                        ("strength", pa.string()),
                        ("edited", pa.string()),
                        ("reason", pa.string()),
                        ("shown", pa.string()),
                        ("seconds", pa.float64()),
                        ("at", pa.string()),
                    ]
                )
            ),
        ),
    ]
)
"""Of a Parquet file: tool calls are a text of JSON, since each may have arguments of its own."""


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    shown = ("prompt", "first", "second")
    plain = [{**row, **{key: _flat(row[key]) for key in shown}} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    pyarrow.parquet.write_table(pa.Table.from_pylist(plain, _SCHEMA), temporary)
    temporary.replace(path)


def _flat(turns: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**turn, "tool_calls": json.dumps(turn["tool_calls"], ensure_ascii=False)}
        if "tool_calls" in turn
        else dict(turn)
        for turn in turns
    ]
