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
    """
    came = example
    edits: list[str] = []
    for name in names:
        answer = rules[name](example)
        if isinstance(answer, Drop):
            return came, edits, f"{name}: {answer.reason}"
        if not isinstance(answer, Example):
            raise BadInput(
                f"clean rule {name}: expected the row, a changed row or Drop(reason), "
                f"got {type(answer).__name__} for row {example.id}"
            )
        if answer != example:
            _check_change(name, example, answer)
            edits.append(name)
        example = answer
    if edits:
        try:
            Example.model_validate(example.to_json())
        except ValidationError:
            return came, edits, "the rules left no valid dialog"
    return example, edits, ""


def _check_change(name: str, before: Example, after: Example) -> None:
    def others(row: Example) -> list[object]:
        return [m if m.role != "assistant" else m.role for m in row.messages]

    if before.id != after.id or others(before) != others(after):
        raise BadInput(
            f"clean rule {name}: row {before.id}: a rule changes the text of assistant turns only, "
            "never the id or another turn"
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
