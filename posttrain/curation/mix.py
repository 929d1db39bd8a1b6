"""The mix: shares of capabilities by number of examples (section 4.2, table 7).

Knows wanted shares, repeats and which rows are the worst; knows no model and no training.

    mix(rows, {"math": 0.5, "code": 0.5}, Mix(max_repeat=4))
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from posttrain.curation.contract import Dropped, MixShare, Row, StepResult, drop
from posttrain.errors import StepFailed
from posttrain.settings.pipeline import Mix
from posttrain.shares import target_sizes

STEP = "mix"


def mix(
    rows: Sequence[Row], shares: Mapping[str, float], settings: Mix
) -> tuple[StepResult, Mapping[str, MixShare]]:
    """Repeat small sources, downsample large ones worst first, towards the wanted shares.

    Returns:
        The rows with their `repeat`, and wanted beside achieved shares.

    Raises:
        StepFailed: no row is left.
    """
    by_capability: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=Row.rank):
        by_capability[_share_of(row, settings)].append(row)
    sizes = {capability: len(own) for capability, own in by_capability.items()}
    targets = target_sizes(sizes, shares, settings.max_repeat, settings.max_total)
    kept: list[Row] = []
    dropped: list[Dropped] = []
    examples: dict[str, int] = {}
    for capability, ranked in sorted(by_capability.items()):
        target = targets.get(capability, 0)
        reason = "over share" if shares.get(capability) else "no share in the mix"
        times, more = divmod(target, len(ranked))
        examples[capability] = target
        for place, row in enumerate(ranked):
            repeat = times + (place < more)
            if repeat:
                kept.append(row._replace(repeat=repeat).decide(STEP, f"repeat {repeat}"))
            else:
                dropped.append(drop(row, STEP, reason))
    total = sum(examples.values())
    if not total:
        raise StepFailed(
            f"mix: no rows left: {dict(sorted(examples.items()))} for shares {dict(shares)}; "
            "see what the steps before dropped"
        )
    missing = sorted(c for c, share in shares.items() if share and not by_capability.get(c))
    result = StepResult(kept, dropped, {}, {"examples": total, "missing": missing})
    num_rows = Counter(_share_of(row, settings) for row in kept)
    achieved = {
        c: MixShare(shares.get(c, 0.0), examples.get(c, 0) / total, num_rows[c], examples.get(c, 0))
        for c in sorted({*shares, *by_capability})
    }
    return result, achieved


def _share_of(row: Row, settings: Mix) -> str:
    """What a row counts for."""
    if settings.by == "capability":
        return row.capability
    assert row.topic is not None
    return row.topic[0]
