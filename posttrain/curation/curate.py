"""All of curation in one call: the pipeline's steps in their order, every row accounted for.

Knows the order and the counting; each step is a file of its own.

    curate(rows, Pipeline(), CurationTools(rules=rules, heldout=prompts, shares=plan.mix)).kept
"""

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from posttrain.curation.balance import balance
from posttrain.curation.clean import clean
from posttrain.curation.contract import (
    Curated,
    CurationTools,
    Dropped,
    Examples,
    MixShare,
    Row,
    Scored,
    StepCount,
    StepResult,
)
from posttrain.curation.decontaminate import decontaminate
from posttrain.curation.duplicates import drop_copies, drop_equal, drop_near
from posttrain.curation.filters import check_filters, run_filter
from posttrain.curation.mix import mix
from posttrain.curation.quality import rate_difficulty, rate_quality
from posttrain.curation.scan import Scan
from posttrain.curation.topics import label_topics, read_topics
from posttrain.errors import BadInput, GuardFailed, StepFailed
from posttrain.settings.pipeline import Pipeline


def curate(rows: Iterable[Scored], settings: Pipeline, tools: CurationTools) -> Curated:
    """Turn scored rows into the examples of one SFT stage (section 4.2.3).

    The result depends on the set of rows, not on their order.

    Raises:
        BadInput: rows, rules or tools that do not fit the settings; see the steps.
        StepFailed: all rows are dropped, or semantic dedup loses too much of a capability.
        GuardFailed: a step lost or invented a row.
    """
    check_filters(settings.filters, tools.filters)
    try:
        return _curated(rows, settings, tools)
    finally:
        gc.unfreeze()


def _curated(rows: Iterable[Scored], settings: Pipeline, tools: CurationTools) -> Curated:
    scan = Scan(settings, tools)
    with _no_cycles_looked_for():
        current = scan.read(rows)
    if not current:
        raise BadInput("no rows to curate: expected the scored rows of a round, got none")
    dropped: list[Dropped] = []
    counts: list[StepCount] = []
    shares: Mapping[str, MixShare] = {}
    for step in settings.order:
        if not current:
            raise StepFailed(f"all rows dropped before {step}: {_summary(counts)}")
        if step == "mix" and not tools.shares:
            result = StepResult([row.decide(step, "no shares are wanted") for row in current], [])
        elif step == "mix":
            result, shares = mix(current, tools.shares, settings.mix, tools.sub_mixes)
        else:
            result = _run(step, current, settings, tools, scan)
        _check_accounts(step, current, result)
        counts.append(_count(step, len(current), result))
        dropped.extend(sorted(result.dropped, key=lambda d: (d.id, d.reason)))
        current = result.kept
    kept = Examples(sorted(current, key=lambda row: row.id))
    return Curated(kept, tuple(dropped), tuple(counts), shares)


@contextmanager
def _no_cycles_looked_for() -> Iterator[None]:
    """Rows hold none, and to look through all of them again and again takes a sixth of the time.

    What was made within is left out of later collections too, until `gc.unfreeze`.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def _run(
    step: str, rows: Sequence[Row], settings: Pipeline, tools: CurationTools, scan: Scan
) -> StepResult:
    match step:
        case "clean":
            return clean(rows, settings.clean.rules)
        case "exact_duplicates":
            return drop_equal(rows)
        case "minhash":
            return drop_copies(rows, settings.minhash, scan.keys_NB, settings.dedup.earlier)
        case "quality":
            return rate_quality(rows, settings.quality)
        case "difficulty":
            return rate_difficulty(rows, settings.difficulty, tools.embed)
        case "semantic_dedup":
            return drop_near(rows, settings.dedup, tools)
        case "topics":
            if tools.embed is None or tools.topics is None:
                raise BadInput("topics is in the order, but no embedder or no topics were given")
            return label_topics(rows, settings.topics, read_topics(tools.topics), tools.embed)
        case "decontaminate":
            return decontaminate(rows, len(tools.heldout))
        case "balance":
            return balance(rows, settings.balance)
        case _:
            return run_filter(step, rows, tools.filters[step], scan.changed)


def _check_accounts(step: str, before: Sequence[Row], result: StepResult) -> None:
    came = Counter(row.id for row in before)
    went = Counter(row.id for row in result.kept) + Counter(d.id for d in result.dropped)
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
