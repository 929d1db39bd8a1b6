"""The mix: shares of capabilities by number of examples (section 4.2, table 7).

Knows wanted shares, repeats and which rows are the worst; knows no model and no training.

    mix(rows, {"math": 0.5, "code": 0.5}, Mix(max_repeat=4))
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from posttrain.curation.contract import Dropped, MixShare, Row, StepResult, drop
from posttrain.errors import StepFailed
from posttrain.settings.pipeline import Mix
from posttrain.shares import target_sizes

STEP = "mix"
HUMAN = "human"
"""In a sub_mix: rows that people wrote, whatever source they name."""


def mix(
    rows: Sequence[Row],
    shares: Mapping[str, float],
    settings: Mix,
    sub_mixes: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> tuple[StepResult, Mapping[str, MixShare]]:
    """Repeat small sources, downsample large ones worst first, towards the wanted shares.

    Args:
        rows: What is left of a round's examples.
        shares: Wanted, by capability (or topic).
        settings: How often a row may be repeated, and the most examples.
        sub_mixes: Capability → weights of where its rows come from, by how their source begins.

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
        examples[capability] = 0
        weights = sub_mixes.get(capability, {})
        for name, own, size in _divided(ranked, target, weights, settings.max_repeat):
            examples[capability] += size
            times, more = divmod(size, len(own))
            for place, row in enumerate(own):
                repeat = times + (place < more)
                if repeat:
                    kept.append(row._replace(repeat=repeat).decide(STEP, f"repeat {repeat}"))
                else:
                    strange = weights and not name and reason == "over share"
                    told = f"no share in the sub_mix of {capability}" if strange else reason
                    dropped.append(drop(row, STEP, told))
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


def _divided(
    ranked: Sequence[Row], target: int, weights: Mapping[str, float], max_repeat: int
) -> list[tuple[str, list[Row], int]]:
    """A capability's rows by where they come from, and how many examples each part gives.

    Rows that no weight is for give none. A part that is too small leaves the capability under its
    share, rather than making every other part smaller.
    """
    if not weights:
        return [("", list(ranked), target)]
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in ranked:
        begun = [name for name in weights if row.source.startswith(name)]
        if not begun and row.human and HUMAN in weights:
            begun = [HUMAN]
        parts[max(begun, key=len, default="")].append(row)
    present = {name: len(own) for name, own in parts.items() if name}
    whole = sum(weights[name] for name in present)
    wanted = {name: weights[name] / whole for name in present}
    sizes = target_sizes(present, wanted, max_repeat, target)
    return [(name, own, sizes.get(name, 0)) for name, own in sorted(parts.items())]


def _share_of(row: Row, settings: Mix) -> str:
    """What a row counts for."""
    if settings.by == "capability":
        return row.capability
    assert row.topic is not None
    return row.topic[0]
