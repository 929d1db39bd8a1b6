"""Tasks as a Label Studio project, and what its annotators said as judgments.

Knows Label Studio's JSON: tasks in, and its export `JSON` out (not JSON-MIN). Each response stands
on the side that the task's id draws, the same for everybody: who shall see which side first cannot
be told to Label Studio. `CONFIG` is the project's labeling interface.

    write_json(path, project_tasks(tasks))
    judgments, rejects = judgments_of(json.loads(export.read_text()), tasks, {1: "ana"})
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.annotate.answers import Side, side_of, with_edit
from posttrain.errors import BadInput
from posttrain.rows import Judgment, Message, Strength, Task, stable_seed
from posttrain.tables import Reject, complaint, excerpt

CONFIG = Path(__file__).with_name("label_studio.xml")
"""Dialog, the two responses side by side (Pairwise), four strengths and a tie, the edit."""


def first_side(task: Task) -> Side:
    """The response that stands first where all see the same order."""
    return "b" if stable_seed("order", task.id) % 2 else "a"


def project_tasks(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The tasks as Label Studio imports them; nothing in them tells a model."""
    found = []
    for task in tasks:
        order = first_side(task)
        first, second = task.sides(order)
        data = {
            "task": task.id,
            "order": order,
            "dialog": "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in task.prompt),
            "first": _text(first),
            "second": _text(second),
        }
        found.append({"data": data})
    return found


def judgments_of(
    export: object, tasks: Sequence[Task], people: Mapping[int, str], file: str
) -> tuple[list[tuple[int, Judgment]], list[Reject]]:
    """The annotations of an export as judgments with their numbers, and those that state none.

    Args:
        export: What the file holds.
        tasks: The round's.
        people: Label Studio's numbers of users → annotators; others are `label-studio-NUMBER`.
        file: Name of the file, for the rejects; their lines count annotations.

    Raises:
        BadInput: it is no export of the kind `JSON`.
    """
    known = {task.id: task for task in tasks}
    judgments: list[tuple[int, Judgment]] = []
    rejects: list[Reject] = []
    for number, (data, annotation) in enumerate(_annotations(export, file), 1):
        try:
            # Half of a surrogate pair can stand in JSON, and nowhere else.
            json.dumps([data, annotation], ensure_ascii=False).encode()
            judgments.append((number, _judgment(known, data, annotation, people)))
        except UnicodeEncodeError:
            reason = "half of a surrogate pair, which UTF-8 cannot hold"
            rejects.append(Reject(file, number, reason, excerpt(ascii(annotation))))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = complaint(error) if isinstance(error, ValueError) else f"no {error}"
            rejects.append(Reject(file, number, reason, excerpt(annotation)))
    return judgments, rejects


def _annotations(export: object, file: str) -> Iterator[tuple[Mapping[str, Any], Any]]:
    expected = f"{file}: expected Label Studio's export `JSON`, a list of tasks with annotations"
    if not isinstance(export, list):
        raise BadInput(expected)
    for task in export:
        if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
            raise BadInput(expected)
        for annotation in task["annotations"]:
            yield task.get("data", {}), annotation


def _judgment(
    known: Mapping[str, Task],
    data: Mapping[str, Any],
    annotation: Mapping[str, Any],
    people: Mapping[int, str],
) -> Judgment:
    """One annotation.

    Raises:
        ValueError: it states no judgment.
    """
    task = known.get(data["task"])
    if task is None:
        raise ValueError(f"there is no task {data['task']}")
    said = {one["from_name"]: one["value"] for one in annotation["result"]}
    user = annotation["completed_by"]
    number = user["id"] if isinstance(user, dict) else user
    if not isinstance(number, int):
        raise ValueError(f"completed_by is {number!r}, expected the number of a user")
    fields: dict[str, Any] = {
        "task": task.id,
        "parents": (task.id,),
        "annotator": people.get(number, f"label-studio-{number}"),
        "reason": "\n".join(said["reason"]["text"]) if "reason" in said else "",
        "first": data["order"],
        "seconds": annotation.get("lead_time"),
        "at": str(annotation["created_at"]).replace("Z", "+00:00"),
    }
    fields |= _verdict(task, data["order"], said, annotation)
    fields["id"] = f"{task.id}/{fields['annotator']}"
    try:
        return Judgment.model_validate(fields)
    except ValidationError as error:
        raise ValueError(complaint(error)) from error


def _verdict(
    task: Task, order: Side, said: Mapping[str, Any], annotation: Mapping[str, Any]
) -> dict[str, Any]:
    if annotation.get("was_cancelled"):
        return {"choice": "skip"}
    strength = said["strength"]["choices"][0] if "strength" in said else None
    side = said["better"]["selected"] if "better" in said else None
    if strength == "tie":
        if side is not None:
            raise ValueError("a tie, though a response was chosen")
        return {"choice": "tie"}
    if side is None or strength is None:
        raise ValueError("neither a response with its strength, nor a tie")
    choice = side_of({"left": "first", "right": "second"}[side], order)
    edited = "\n".join(said["edited"]["text"]) if "edited" in said else ""
    turns = with_edit(task, choice, edited if edited.strip() else None)
    return {"choice": choice, "strength": Strength(strength), "edited": turns}


def _text(response: Sequence[Message]) -> str:
    """A response with what it called, for people to read."""
    if len(response) == 1:
        return response[0].content
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in response)
