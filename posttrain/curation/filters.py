"""Filters: steps of the user's own, a function of `data_quality/` each (section 4.2.3).

A filter is asked about every row with all that the steps before have found (`score`, `quality`,
`topic`, ...), or once about all rows where it is marked with `posttrain.curation.table`. Knows how
its answers are checked; what it decides by, it knows itself.

    run_filter("short_answers", rows, function, scan.changed)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from posttrain.curation.clean import check_answer
from posttrain.curation.contract import Drop, Dropped, Examples, Row, StepResult, drop
from posttrain.errors import BadInput
from posttrain.rows import Example
from posttrain.workspace import blamed

AT_ONCE = 1024
"""Changed rows that are looked at together."""

Changed = Callable[[Sequence[tuple[Row, Example]]], list[Row]]


def check_filters(files: Mapping[str, str], functions: Mapping[str, object]) -> None:
    """Every filter of the pipeline is there.

    Raises:
        BadInput: one is not.
    """
    for name, file in files.items():
        if name not in functions:
            raise BadInput(f"filters.{name}: data_quality/{file} defines no function {name}")


def run_filter(
    name: str, rows: Sequence[Row], function: Callable[..., Any], changed: Changed
) -> StepResult:
    """The rows as a filter leaves them.

    Args:
        name: what stands beside dropped and changed rows.
        rows: a filter over all rows gets them in this order.
        function: see `posttrain.curation.contract.Rule` and `Table`.
        changed: looks at rows whose texts have changed.

    Raises:
        BadInput: an answer that no filter may give, or fewer or more answers than rows.
        StepFailed: the filter raises.
    """
    kept: list[Row] = []
    dropped: list[Dropped] = []
    edited: dict[int, Example] = {}
    num_edited = 0
    for row, (came, answer) in zip(rows, _answers(name, rows, function), strict=True):
        check_answer(name, came, answer)
        if isinstance(answer, Drop):
            dropped.append(drop(row, name, answer.reason))
            continue
        if answer != came:
            edited[len(kept)] = answer
            num_edited += 1
            row = row._replace(edits=(*row.edits, name))
        kept.append(row.decide(name, "unchanged" if answer == came else "changed"))
        if len(edited) == AT_ONCE:
            _look_again(kept, edited, changed)
    _look_again(kept, edited, changed)
    return StepResult(kept, dropped, {name: num_edited})


def _look_again(kept: list[Row], edited: dict[int, Example], changed: Changed) -> None:
    fresh = changed([(kept[place], answer) for place, answer in edited.items()])
    for place, row in zip(edited, fresh, strict=True):
        kept[place] = row
    edited.clear()


def _answers(
    name: str, rows: Sequence[Row], function: Callable[..., Any]
) -> Iterator[tuple[Example, Any]]:
    """Each row as the filter saw it, with what it says of it."""
    whole = getattr(function, "takes_all_rows", False)
    said = None
    if whole:
        with blamed(name):
            said = iter(function(Examples(rows)))
    for number, row in enumerate(rows):
        came = row.result()
        with blamed(f"{name}: row {row.id}"):
            try:
                answer = function(came) if said is None else next(said)
            except StopIteration:
                raise BadInput(f"{name}: {number} answers for {len(rows)} rows") from None
        yield came, answer
    if said is not None and next(said, None) is not None:
        raise BadInput(f"{name}: more answers than the {len(rows)} rows")
