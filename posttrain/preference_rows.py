"""Preferences as a file states them, one judged turn each, and those that training uses.

Knows strengths, and how a judged dialog falls into turns; which files and batches are read is a
stage's affair.

    read_table(path, JudgedRow).rows[0].preferences
    strong_preferences([inputs["preferences"]], Strength.BETTER, out)
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.errors import BadInput
from posttrain.judgments.preferences import with_checked_edit
from posttrain.rows import Message, Preference, Strength, content_id
from posttrain.steps.output import Output
from posttrain.tables import complaint, load_rows

Turns = tuple[Message, ...]


class JudgedRow(BaseModel):
    """A row of a preference file as preferences of one turn each (section 4.2.1).

    A row is a `Preference`, or a dialog that was judged turn by turn: `turns`, each with its
    `prompt` (what was said since the last response) and the columns of a preference. A dialog goes
    on from the chosen response of each turn, or the first of `ranked`; a turn without `rejected`
    was not judged and only carries it on. The dialog's turn N is row `ID/turn-N`, whose prompt is
    the dialog so far; its parent is the row.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    preferences: Annotated[tuple[Preference, ...], Field(min_length=1)]
    unchanged_edits: int
    """Edits that equal the chosen response; they are left out."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_file(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if data.get("turns") is None:
            row, unchanged = _checked(data)
            return {"id": row.id, "preferences": (row,), "unchanged_edits": unchanged}
        row_id = data.get("id") or _id_of(data)
        found = [_checked_turn(fields) for fields in _turns_of(data, row_id)]
        if not found:
            raise ValueError("turns: none of them was judged")
        return {
            "id": row_id,
            "preferences": tuple(row for row, _ in found),
            "unchanged_edits": sum(unchanged for _, unchanged in found),
        }


class _Turn(BaseModel):
    """A turn of a judged dialog; what else it holds belongs to its preference."""

    model_config = ConfigDict(frozen=True, extra="allow")

    prompt: Turns = ()
    chosen: Turns | None = None
    rejected: Turns | None = None
    ranked: Annotated[tuple[Turns, ...], Field(min_length=1)] | None = None


class _Dialog(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    prompt: Turns = ()
    turns: Annotated[tuple[_Turn, ...], Field(min_length=1)]


def strong_preferences(
    folders: Iterable[Path],
    min_strength: Strength,
    out: Output,
    made: Sequence[Preference] = (),
    without: Collection[str] = (),
) -> list[Preference]:
    """Training pairs of preference steps that are strong enough; weaker ones in the books.

    The reward model and DPO train on *better* and *significantly better* only (section 4.2.1).

    Args:
        folders: Of preference steps.
        min_strength: The weakest that is trained on.
        out: Whose books it goes to.
        made: Pairs that nobody judged, which come after those.
        without: Capabilities that are left out.

    Raises:
        BadInput: no pair is left.
    """
    rows = [row for folder in folders for row in load_rows(folder / "train.jsonl", Preference)]
    strong = []
    for row in rows:
        if row.capability in without:
            out.drop(row.id, "left out: its recipe says dpo: false")
        elif row.strength.level >= min_strength.level:
            strong.append(row)
        else:
            out.drop(row.id, "too weak", strength=str(row.strength))
    out.part("strength", len(rows), len(strong))
    if not strong and not made:
        found = Counter(str(row.strength) for row in rows)
        raise BadInput(
            f"no preference is left to train on: of {len(rows)} none is {min_strength} or stronger "
            f"({dict(found) or 'there are none'}); lower min_strength, or give more preferences"
        )
    if made:
        made = [row for row in made if row.capability not in without]
        out.part("synthetic", len(made), len(made))
    return [*strong, *made]


def at_last_turn(row: Preference) -> Preference:
    """The preference with its responses cut to the one turn that was judged.

    A turn is what follows a user's message: an answer, or tool calls, their results and an answer.
    Turns that all responses share, through their last user's message, move into the prompt.

    Raises:
        ValueError: responses differ before their last user's message, so several turns were
            judged at once.
    """
    best, *others = row.ranking()
    start = max((place + 1 for place, turn in enumerate(best) if turn.role == "user"), default=0)
    shared = best[:start]
    if any(one[:start] != shared or _has_user(one[start:]) for one in others):
        raise ValueError(
            "responses differ before their last user turn: give each judged turn as one of turns"
        )
    if not shared:
        return row
    changes: dict[str, Any] = {"prompt": (*row.prompt, *shared)}
    if row.ranked is not None:
        changes["ranked"] = tuple(one[start:] for one in row.ranked)
    else:
        sides = {"chosen": row.chosen, "rejected": row.rejected, "edited": row.edited}
        changes |= {name: side and side[start:] for name, side in sides.items()}
    return row.model_copy(update=changes)


def _has_user(turns: Turns) -> bool:
    return any(turn.role == "user" for turn in turns)


def _checked(fields: Mapping[str, Any]) -> tuple[Preference, bool]:
    """The preference that fields state, and whether its edit changed nothing."""
    try:
        settled = with_checked_edit(fields)
        unchanged = fields.get("edited") is not None and settled["edited"] is None
        return at_last_turn(Preference.model_validate(settled if unchanged else fields)), unchanged
    except ValueError as error:
        raise ValueError(complaint(error)) from error


def _checked_turn(fields: Mapping[str, Any]) -> tuple[Preference, bool]:
    try:
        return _checked(fields)
    except ValueError as error:
        raise ValueError(f"{fields['id']}: {error}") from error


def _turns_of(data: Mapping[str, Any], row_id: str) -> Iterator[dict[str, Any]]:
    """The fields of each turn that was judged, the dialog so far as its prompt."""
    try:
        dialog = _Dialog.model_validate(data)
    except ValueError as error:
        raise ValueError(complaint(error)) from error
    common = {key: value for key, value in (dialog.model_extra or {}).items() if key != "id"}
    so_far = list(dialog.prompt)
    for number, turn in enumerate(dialog.turns, 1):
        so_far += turn.prompt
        if turn.rejected is not None or turn.ranked is not None:
            yield {
                **common,
                **turn.model_dump(mode="json", exclude_none=True),
                "id": f"{row_id}/turn-{number}",
                "parents": [row_id],
                "prompt": [message.to_json() for message in so_far],
            }
        so_far += turn.ranked[0] if turn.ranked is not None else turn.chosen or ()


def _id_of(data: Mapping[str, Any]) -> str:
    try:
        return content_id(data)
    except TypeError as error:
        raise ValueError(f"a row without an id must be plain JSON ({error})") from error
