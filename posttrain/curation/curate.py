"""All of curation in one call: the pipeline's steps in their order, every row accounted for.

Knows the order and the counting; each step is a file of its own.

    curate(rows, Pipeline(), CurationTools(rules=rules, heldout=prompts, shares=plan.mix)).kept
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from posttrain.curation.clean import clean
from posttrain.curation.contract import (
    Curated,
    CurationTools,
    Dropped,
    MixShare,
    Row,
    Scored,
    StepCount,
    StepResult,
)
from posttrain.curation.decontaminate import decontaminate
from posttrain.curation.duplicates import drop_equal, drop_near
from posttrain.curation.mix import mix
from posttrain.curation.quality import rate_difficulty, rate_quality
from posttrain.dedup import dialog_hash
from posttrain.errors import BadInput, GuardFailed, StepFailed
from posttrain.settings.pipeline import Pipeline, StepName


def curate(rows: Sequence[Scored], settings: Pipeline, tools: CurationTools) -> Curated:
    """Turn scored rows into the examples of one SFT stage (section 4.2.3).

    The result depends on the set of rows, not on their order.

    Raises:
        BadInput: rows, rules or tools that do not fit the settings; see the steps.
        StepFailed: all rows are dropped, or semantic dedup loses too much of a capability.
        GuardFailed: a step lost or invented a row.
    """
    _check_rows(rows, settings)
    current = [Row.of(scored, tools.seed) for scored in sorted(rows, key=_content)]
    dropped: list[Dropped] = []
    counts: list[StepCount] = []
    shares: Mapping[str, MixShare] = {}
    for step in settings.order:
        if not current:
            raise StepFailed(f"all rows dropped before {step}: {_summary(counts)}")
        if step == "mix":
            result, shares = mix(current, tools.shares, settings.mix)
        else:
            result = _run(step, current, settings, tools)
        _check_accounts(step, current, result)
        counts.append(_count(step, len(current), result))
        dropped.extend(sorted(result.dropped, key=lambda d: (d.id, d.reason)))
        current = result.kept
    kept = sorted((row.result() for row in current), key=lambda example: example.id)
    return Curated(tuple(kept), tuple(dropped), tuple(counts), shares)


def _run(
    step: StepName, rows: Sequence[Row], settings: Pipeline, tools: CurationTools
) -> StepResult:
    match step:
        case "clean":
            return clean(rows, settings.clean.rules, tools.rules)
        case "exact_duplicates":
            return drop_equal(rows, tools)
        case "quality":
            return rate_quality(rows, settings.quality)
        case "difficulty":
            return rate_difficulty(rows, settings.difficulty)
        case "semantic_dedup":
            return drop_near(rows, settings.dedup, tools)
        case "decontaminate":
            return decontaminate(rows, tools.heldout, settings.decontaminate)
        case "mix":
            raise AssertionError("mix is run by curate")


def _content(scored: Scored) -> tuple[str, ...]:
    """All that a row holds as text: sorted by it, the input's order leaves no trace."""
    prompt = scored.prompt.model_dump_json() if scored.prompt else ""
    rest = (repr(scored.score), repr(scored.grade), repr(scored.human))
    return (scored.example.id, scored.example.model_dump_json(), prompt, *rest)


def _check_rows(rows: Sequence[Scored], settings: Pipeline) -> None:
    if not rows:
        raise BadInput("no rows to curate: expected the scored rows of a round, got none")
    seen: dict[str, str] = {}
    for scored in rows:
        if scored.score is not None and not math.isfinite(scored.score):
            raise BadInput(f"row {scored.example.id}: expected a finite score, got {scored.score}")
        dialog = dialog_hash(scored.example)
        first = seen.get(scored.example.id)
        if first is not None and first != dialog:
            raise BadInput(f"two different rows have the id {scored.example.id}: give each its own")
        if first is not None and "exact_duplicates" not in settings.order:
            raise BadInput(
                f"the row {scored.example.id} occurs twice: put exact_duplicates into the order, "
                "or leave one out"
            )
        seen[scored.example.id] = dialog


def _check_accounts(step: str, before: Sequence[Row], result: StepResult) -> None:
    came = Counter(row.example.id for row in before)
    went = Counter(row.example.id for row in result.kept) + Counter(d.id for d in result.dropped)
    if came != went:
        lost, new = came - went, went - came
        raise GuardFailed(
            f"{step}: kept and dropped rows do not add up to the rows that came in: "
            f"{lost.total()} lost, {new.total()} too many (e.g. {next(iter(lost or new))})"
        )


def _count(step: str, rows_in: int, result: StepResult) -> StepCount:
    reasons = Counter(d.reason for d in result.dropped)
    return StepCount(
        step=step,
        rows_in=rows_in,
        rows_out=len(result.kept),
        dropped=dict(sorted(reasons.items())),
        modified=result.modified,
        notes=result.notes,
    )


def _summary(counts: Sequence[StepCount]) -> str:
    return ", ".join(f"{c.step} {c.rows_in} → {c.rows_out} {dict(c.dropped)}" for c in counts)
