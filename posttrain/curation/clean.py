"""Cleaning: rules of the workspace that keep, modify or drop a row (section 4.2.3).

Knows how to apply rules and to check their answers; knows no rule (`data_quality/rules.py`).

    apply_rules(example, ("strip_emoji", "drop_empty"), rules)
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from posttrain.curation.contract import Drop, Dropped, Row, Rule, StepResult, drop
from posttrain.errors import BadInput
from posttrain.rows import Example
from posttrain.workspace import blamed

STEP = "clean"


def clean(rows: Sequence[Row], names: Sequence[str]) -> StepResult:
    """Drop what the rules drop; the rows come cleaned from `posttrain.curation.scan`."""
    kept: list[Row] = []
    dropped: list[Dropped] = []
    modified: Counter[str] = Counter(dict.fromkeys(names, 0))
    for row in rows:
        modified.update(row.edits)
        decided = row.decide(STEP, " + ".join(row.edits) or "unchanged")
        if row.unclean:
            dropped.append(drop(decided, STEP, row.unclean))
        else:
            kept.append(decided)
    return StepResult(kept, dropped, dict(modified))


def apply_rules(
    example: Example, names: Sequence[str], rules: Mapping[str, Rule]
) -> tuple[Example, list[str], str]:
    """The example after the rules, the rules that changed it, and why it goes ("" if it stays).

    One that goes is as it came.

    Raises:
        BadInput: an answer that no rule may give.
        StepFailed: a rule raises.
    """
    came = example
    edits: list[str] = []
    name = ""
    with blamed(lambda: f"{name}: row {came.id}"):
        for name in names:
            answer = rules[name](example)
            if answer is example:
                continue
            check_answer(name, example, answer)
            if isinstance(answer, Drop):
                return came, edits, f"{name}: {answer.reason}"
            if answer != example:
                edits.append(name)
            example = answer
    if edits:
        try:
            Example.model_validate(example.to_json())
        except ValidationError:
            return came, edits, "the rules left no valid dialog"
    return example, edits, ""


def check_answer(name: str, before: Example, answer: object) -> None:
    """A rule or a filter answers with the row, with other assistant turns in it, or with a `Drop`.

    Raises:
        BadInput: another answer.
    """
    if isinstance(answer, Drop):
        return
    if not isinstance(answer, Example):
        raise BadInput(
            f"{name}: expected the row, a changed row or Drop(reason), "
            f"got {type(answer).__name__} for row {before.id}"
        )

    if answer.id != before.id:
        raise BadInput(
            f"{name}: row {before.id}: answered with row {answer.id}; ids stay as they are, and a "
            "filter over all rows answers in their order"
        )

    def others(row: Example) -> list[object]:
        return [m if m.role != "assistant" else m.role for m in row.messages]

    same = before.model_copy(update={"messages": answer.messages}) == answer
    if not same or others(before) != others(answer):
        raise BadInput(
            f"{name}: row {before.id}: only the text of assistant turns may be changed, "
            "never another turn or another column"
        )


def check_known(names: Sequence[str], rules: Mapping[str, Rule]) -> None:
    """Every named rule is there.

    Raises:
        BadInput: an unknown rule.
    """
    for name in names:
        if name not in rules:
            near = difflib.get_close_matches(name, rules, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise BadInput(f"clean.rules: no function {name} among the rules {sorted(rules)}{hint}")
