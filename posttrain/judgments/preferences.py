"""What the judgments of a task state: a preference, or a reason why there is none.

Knows tasks, judgments and edits; who judged is all the same.

    preference_of(task, judgments)      # a Preference, or "tie: a judgment, no preference"
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.rows import Judgment, Message, Preference, Task


def preference_of(task: Task, judgments: Sequence[Judgment]) -> Preference | str:
    """The preference that the judgments of a task state, or why they state none.

    Of several, more than half (skips aside) must choose the same response; the strength is the
    weaker middle one of theirs, the edit the first of theirs. Ties and skips are never preferences,
    and neither are answers to tasks whose answer is known.

    Args:
        task: What was judged.
        judgments: All of them, at least one, each by somebody else.

    Raises:
        ValueError: the ranking is none, e.g. an edit equal to the rejected response.
    """
    if task.gold is not None:
        return "gold: a check of annotators, no preference"
    votes = Counter(one.choice for one in judgments if one.choice != "skip")
    if not votes:
        return "skip: a judgment, no preference"
    choice, num = votes.most_common(1)[0]
    if 2 * num <= votes.total():
        return "annotators disagree: no preference"
    if choice != "a" and choice != "b":
        return f"{choice}: a judgment, no preference"
    agreed = sorted((o for o in judgments if o.choice == choice), key=lambda one: one.annotator)
    strengths = sorted((o.strength for o in agreed if o.strength), key=lambda one: one.level)
    chosen, rejected = task.sides(choice)
    fields = {
        "parents": (*(one.id for one in agreed), task.id, *task.parents),
        "prompt": task.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "edited": next((one.edited for one in agreed if one.edited), None),
        "tools": task.tools,
        "strength": strengths[(len(strengths) - 1) // 2],
        "capability": task.capability,
        "batch": task.batch,
    }
    return Preference.model_validate(with_checked_edit(fields))


def with_checked_edit(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preference; `edited` is None where the edit equals the chosen response.

    White space around a turn makes no edit. Values that are no messages are left for
    `Preference` to refuse.

    Raises:
        ValueError: the edit is empty, or equals the rejected response.
    """
    edited = _bare(fields.get("edited"))
    if edited is None:
        return {**fields, "edited": None}
    if not edited or (isinstance(edited, list) and not any(_says(turn) for turn in edited)):
        raise ValueError("edited is empty")
    if edited == _bare(fields.get("rejected")):
        raise ValueError("edited equals rejected")
    return {**fields, "edited": None if edited == _bare(fields.get("chosen")) else fields["edited"]}


def _bare(value: Any) -> Any:
    """Messages as plain values, without white space around them and without unset fields."""
    if isinstance(value, Message):
        value = value.to_json()
    if isinstance(value, Mapping):
        return {k: _bare(one) for k, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_bare(one) for one in value]
    return value.strip() if isinstance(value, str) else value


def _says(turn: Any) -> bool:
    return not isinstance(turn, Mapping) or bool(turn.get("content") or turn.get("tool_calls"))
