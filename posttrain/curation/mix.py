"""The mix: shares of capabilities by number of examples (section 4.2, table 7).

Knows wanted shares, repeats and which rows are the worst; knows no model and no training.

    mix(rows, {"math": 0.5, "code": 0.5}, Mix(max_repeat=4))
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from posttrain.curation.contract import Dropped, MixShare, Row, StepResult, drop
from posttrain.errors import StepFailed
from posttrain.settings.pipeline import Mix

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
    targets = target_sizes({c: len(r) for c, r in by_capability.items()}, shares, settings)
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


def target_sizes(
    num_rows: Mapping[str, int], shares: Mapping[str, float], settings: Mix
) -> dict[str, int]:
    """How many examples, repeats counted, each capability gets.

    The total is the largest that keeps the wanted shares without repeating a row more than
    `max_repeat` times, and without repeating the source that is largest for its share at all:
    repeating everything would only lengthen the epoch. A capability without rows gives its share
    to the others in proportion.
    """
    wanted = {c: Fraction(str(shares[c])) for c in sorted(shares) if shares[c] and num_rows.get(c)}
    whole = sum(wanted.values())
    if not whole:
        return {}
    # A source of n rows alone would allow a total of n / share.
    alone = {c: num_rows[c] * whole / share for c, share in wanted.items()}
    total = math.floor(min(max(alone.values()), settings.max_repeat * min(alone.values())))
    if settings.max_total is not None:
        total = min(total, settings.max_total)
    exact = {c: total * share / whole for c, share in wanted.items()}
    sizes = {c: math.floor(size) for c, size in exact.items()}
    # Largest remainders take what rounding down left.
    by_remainder = sorted(wanted, key=lambda c: (sizes[c] - exact[c], c))
    for capability in by_remainder[: total - sum(sizes.values())]:
        sizes[capability] += 1
    return sizes
