"""How well annotators judge: agreement, tasks with a known answer, habits of each.

Knows tasks and judgments. A tie is a choice of its own; a skip is no judgment here.

    told = quality_of(tasks, judgments, confidence=0.95)
    told["agreement"]["alpha"]["side"]      # {"value": 0.61, "low": 0.52, "high": 0.69}
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from posttrain.rows import Judgment, Strength, Task
from posttrain.settings.annotation import Quality
from posttrain.statistics import wilson

Table = NDArray[np.float64]
Level = Literal["nominal", "ordinal"]
CONFIDENCE = 0.95
"""Coverage of the intervals that are shown."""
RESAMPLES = 1000
"""Of the tasks, for the intervals of α."""
_SCALE = tuple(range(-4, 5))
_SIDES = (-1, 0, 1)


def quality_of(
    tasks: Iterable[Task], judgments: Sequence[Judgment], confidence: float
) -> dict[str, Any]:
    """What a report shows of the people who judged a round's tasks.

    Args:
        tasks: All of the round.
        judgments: Of people; a judge's are compared with them by `agreement_with`.
        confidence: Coverage of the intervals, between 0 and 1.

    Returns:
        `annotators` (name → numbers of their own) and `agreement` (on tasks that several judged,
        those with a known answer left out).
    """
    gold = {task.id: task.gold for task in tasks if task.gold is not None}
    by_name: dict[str, list[Judgment]] = defaultdict(list)
    for one in judgments:
        by_name[one.annotator].append(one)
    return {
        "annotators": {
            name: _habits(rows, gold, confidence) for name, rows in sorted(by_name.items())
        },
        "agreement": agreement([one for one in judgments if one.task not in gold], confidence),
    }


def flagged(annotators: Mapping[str, Mapping[str, Any]], asked: Quality) -> list[str]:
    """Annotators who judge fewer gold tasks as expected than is asked of them."""
    return [
        name
        for name, one in annotators.items()
        if one["gold"] is not None
        and one["gold"]["num"] >= asked.min_gold
        and one["gold"]["value"] < asked.min_accuracy
    ]


def agreement(judgments: Iterable[Judgment], confidence: float) -> dict[str, Any]:
    """How far annotators agree on tasks that several of them judged.

    Returns:
        `tasks` (how many), `same` (share of them on which all chose the same side) and
        Krippendorff's α (Krippendorff 2011), nominal over the `side` and ordinal over the
        `strength` from −4 to 4, with intervals over resampled tasks; None where it is not defined.
    """
    by_task: dict[str, list[int]] = defaultdict(list)
    for one in judgments:
        if one.scale is not None:
            by_task[one.task].append(one.scale)
    # Sorted, so that no order of judgments reaches the resamples.
    shared = [sorted(found) for _, found in sorted(by_task.items()) if len(found) > 1]
    same = sum(len({_sign(value) for value in found}) == 1 for found in shared)
    sides = [[_sign(value) for value in found] for found in shared]
    return {
        "tasks": len(shared),
        "same": vars(wilson(same, len(shared), confidence)) if shared else None,
        "alpha": {
            "side": _alpha(sides, _SIDES, "nominal", confidence),
            "strength": _alpha(shared, _SCALE, "ordinal", confidence),
        },
    }


def agreement_with(
    judge: Iterable[Judgment],
    tasks: Iterable[Task],
    judgments: Iterable[Judgment],
    confidence: float,
) -> dict[str, Any]:
    """How often a judge chooses as people do.

    Returns:
        `by_capability` and `all`: share of its choices that people made too, on tasks where all of
        them made the same one; `shared`: the same on tasks that several people judged.
    """
    capability = {task.id: task.capability for task in tasks if task.gold is None}
    said: dict[str, set[int]] = defaultdict(set)
    num: Counter[str] = Counter()
    for one in judgments:
        if one.scale is not None:
            said[one.task].add(_sign(one.scale))
            num[one.task] += 1
    hits: dict[str, list[bool]] = defaultdict(list)
    for verdict in judge:
        known = said.get(verdict.task, set())
        if verdict.scale is None or len(known) != 1 or verdict.task not in capability:
            continue
        hit = _sign(verdict.scale) in known
        hits[capability[verdict.task]].append(hit)
        hits["all"].append(hit)
        if num[verdict.task] > 1:
            hits["shared"].append(hit)
    rates = {name: vars(wilson(sum(some), len(some), confidence)) for name, some in hits.items()}
    return {
        "all": rates.pop("all", None),
        "shared": rates.pop("shared", None),
        "by_capability": dict(sorted(rates.items())),
    }


def _habits(rows: Sequence[Judgment], gold: Mapping[str, str], confidence: float) -> dict[str, Any]:
    """What one annotator did."""
    chosen = [one for one in rows if one.strength is not None]
    placed = [one.choice == one.first for one in chosen if one.first is not None]
    known = [
        one.choice == gold[one.task] for one in rows if one.task in gold and one.choice != "skip"
    ]
    seconds = [one.seconds for one in rows if one.seconds is not None]
    strengths = Counter(str(one.strength) for one in chosen)
    return {
        "judgments": len(rows),
        "ties": sum(one.choice == "tie" for one in rows),
        "skips": sum(one.choice == "skip" for one in rows),
        "edits": sum(one.edited is not None for one in rows),
        "strengths": {str(strength): strengths[str(strength)] for strength in Strength},
        "gold": vars(wilson(sum(known), len(known), confidence)) if known else None,
        "first": vars(wilson(sum(placed), len(placed), confidence)) if placed else None,
        "seconds": round(median(seconds), 1) if seconds else None,
    }


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _alpha(
    found: Sequence[Sequence[int]], values: Sequence[int], level: Level, confidence: float
) -> dict[str, Any] | None:
    """Krippendorff's α with a percentile interval over resampled tasks."""
    coincidences = _coincidences(found, values)
    whole = krippendorff_alpha(coincidences.sum(axis=0), level)
    if whole is None:
        return None
    draw = np.random.default_rng(0)
    shares = np.full(len(found), 1 / len(found))
    weights = draw.multinomial(len(found), shares, size=RESAMPLES)
    tables = np.tensordot(weights, coincidences, axes=1)
    some = [a for table in tables if (a := krippendorff_alpha(table, level)) is not None]
    low, high = np.quantile(some, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return {"value": round(whole, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _coincidences(found: Sequence[Sequence[int]], values: Sequence[int]) -> Table:
    """Tasks × values × values: pairs of judgments of a task, each task weighing as its judgments.

    A task of n judgments has n (n − 1) ordered pairs, each of which counts 1 / (n − 1).
    """
    counts = np.array([[some.count(v) for v in values] for some in found], dtype=np.float64)
    counts = counts.reshape(len(found), len(values))
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    return np.asarray(pairs / (counts.sum(axis=1) - 1)[:, None, None])


def krippendorff_alpha(coincidences: Table, level: Level) -> float | None:
    """Krippendorff's α = 1 − observed / expected disagreement (Krippendorff 2011).

    Args:
        coincidences: Values × values, the values in their order: how often two judgments of a
            task were one and the other.
        level: `nominal`, where all differences weigh alike; `ordinal`, where one weighs as many
            judgments as lie between the two values.

    Returns:
        1 for full agreement, 0 for what chance would give; None where all judgments are the same
        or there are none: nothing could be expected then.
    """
    totals = coincidences.sum(axis=1)
    if (totals > 0).sum() < 2:
        return None
    if level == "nominal":
        weights = 1 - np.eye(len(totals))
    else:
        middle = np.cumsum(totals) - totals / 2
        weights = (middle[:, None] - middle[None, :]) ** 2
    expected = (np.outer(totals, totals) * weights).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * weights).sum() / expected)
