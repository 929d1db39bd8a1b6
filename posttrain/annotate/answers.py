"""What an annotator says of a task, and what makes it a judgment or a refusal.

Knows sides and edits; knows no file and no page.

    judgment_of(task, "ana", "b", Answer("first", Strength.BETTER)).choice      # "b"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from posttrain.errors import BadInput
from posttrain.rows import Judgment, Message, Messages, Strength, Task
from posttrain.tables import complaint

Side = Literal["a", "b"]
LONGEST_EDIT = 100_000
"""Characters of an edited response, at most."""
LONGEST_REASON = 2_000


class Refused(BadInput):
    """A judgment that is not taken; nothing was changed."""


@dataclass(frozen=True)
class Answer:
    """What an annotator says of a task, by the side that was shown first."""

    choice: Literal["first", "second", "tie", "skip"]
    strength: Strength | None = None
    edited: str | None = None
    """The chosen response as it should read; None leaves it as it is."""
    reason: str = ""


def judgment_of(
    task: Task, annotator: str, first: Side, answer: Answer, forbidden: Sequence[str] = ()
) -> Judgment:
    """The judgment that an answer states.

    Raises:
        Refused: it states none.
    """
    choice = side_of(answer.choice, first)
    edited = with_edit(task, choice, answer.edited)
    if answer.choice == "skip" and not answer.reason.strip():
        raise Refused("say why you skip this task")
    try:
        made = Judgment(
            id=f"{task.id}/{annotator}",
            parents=(task.id,),
            task=task.id,
            choice=choice,
            strength=answer.strength,
            edited=edited,
            annotator=annotator,
            reason=answer.reason,
        )
    except ValidationError as error:
        raise Refused(complaint(error)) from error
    return checked(task, made, forbidden)


def side_of(choice: str, first: Side) -> str:
    """A choice by the responses and not by their places; `tie` and `skip` stay as they are."""
    second: Side = "b" if first == "a" else "a"
    return {"first": first, "second": second}.get(choice, choice)


def with_edit(task: Task, choice: str, text: str | None) -> Messages | None:
    """The chosen response with its last turn as it should read; None where nothing is edited."""
    if text is None or choice not in ("a", "b"):
        return None
    chosen = task.a if choice == "a" else task.b
    return (*chosen[:-1], Message(role="assistant", content=text))


def checked(task: Task, judgment: Judgment, forbidden: Sequence[str] = ()) -> Judgment:
    """The judgment, without an edit that changes nothing.

    Raises:
        Refused: its edit or its reason is too long, the edit ranks nothing, or it holds one of the
            `forbidden` texts.
    """
    if len(judgment.reason) > LONGEST_REASON:
        raise Refused(f"the reason has more than {LONGEST_REASON:,} characters")
    if judgment.edited is None:
        return judgment
    if judgment.choice != "a" and judgment.choice != "b":
        raise Refused("an edit belongs to a chosen response")
    text = judgment.edited[-1].content
    if len(text) > LONGEST_EDIT:
        raise Refused(f"the edit has more than {LONGEST_EDIT:,} characters")
    held = next((token for token in forbidden if token in text), None)
    if held is not None:
        raise Refused(f"the edit holds {held}, which is a control token of the model")
    chosen, rejected = task.sides(judgment.choice)
    if not text.strip():
        raise Refused("the edit is empty")
    if text.strip() == rejected[-1].content.strip():
        raise Refused("the edit equals the response that was not chosen")
    if text.strip() == chosen[-1].content.strip():
        return judgment.model_copy(update={"edited": None})
    return judgment


def stated(judgment: Judgment) -> dict[str, Any]:
    """What two submissions of one judgment have in common."""
    told = judgment.model_dump(include={"choice", "strength", "reason"}, mode="json")
    edited = None if judgment.edited is None else judgment.edited[-1].content
    return {**told, "edited": edited}
