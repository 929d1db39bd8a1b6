"""How far a reward model can be trusted: accuracy on held-out pairs, calibration, liking of length.

Knows pairs with the scores of their best and their worst response; knows no model and no file.
Lengths are characters of a response, so that models with different tokenizers can be compared.
Beside every accuracy stands what picking the longer response would reach. A tie is wrong for both.

    measures([ScoredPair(pair, best=1.2, worst=-0.3)])["calibration"]["ece"]
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from math import exp
from typing import Any, NamedTuple

from posttrain.rows import Message, Preference, Strength
from posttrain.statistics import wilson

CONFIDENCE = 0.95
NUM_BINS = 10
"""Bins of equal width between 0.5 and 1 for the calibration error."""
LENGTH_DIFFERENCES = (
    "preferred shorter by over 50 %",
    "preferred shorter by 10 to 50 %",
    "lengths within 10 %",
    "preferred longer by 10 to 50 %",
    "preferred longer by over 50 %",
)
"""Difference of the two lengths, as a share of the longer one."""
_SMALL, _LARGE = 0.1, 0.5


class ScoredPair(NamedTuple):
    """A pair with the scores of its best and its worst response."""

    pair: Preference
    best: float
    worst: float

    @property
    def won(self) -> bool:
        """Whether the preferred response scores higher."""
        return self.best > self.worst

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of the best and of the worst response."""
        best_first = self.pair.ranking()
        return response_length(best_first[0]), response_length(best_first[-1])

    @property
    def longer_won(self) -> bool:
        """Whether the preferred response is the longer one."""
        best, worst = self.lengths
        return best > worst


def response_length(response: Sequence[Message]) -> int:
    """Characters of a response's turns."""
    return sum(len(turn.content) for turn in response)


def measures(scored: Sequence[ScoredPair]) -> dict[str, Any]:
    """All measures as plain values for JSON.

    Returns:
        `all`, and by `strength`, `capability`, `source` and `length_difference` name →
        {`accuracy`, `longer_wins`}, each a rate with Wilson's interval; `calibration` and
        `length_correlation`. Groupings that the pairs say nothing about are empty.
    """
    groupings: Mapping[str, Callable[[ScoredPair], str]] = {
        "strength": _strength,
        "capability": lambda one: one.pair.capability,
        "source": _source,
        "length_difference": _length_difference,
    }
    return {
        "all": _rates(scored) if scored else None,
        **{name: _by(label, scored) for name, label in groupings.items()},
        "calibration": calibration(one.best - one.worst for one in scored),
        "length_correlation": length_correlation(scored),
    }


def calibration(gaps: Iterable[float]) -> dict[str, Any]:
    """Expected calibration error of σ(Δ), the Bradley-Terry probability of the preferred response.

    A model decides for one response with confidence σ(|Δ|), between 0.5 and 1. In each of
    `NUM_BINS` bins of equal width, the mean confidence is compared with the share of right
    decisions; the error is the mean of the absolute differences, weighted by pairs (Naeini et al.
    2015). A tie counts as half right. Few pairs a bin make the error larger than it is.

    Args:
        gaps: Score of the preferred response minus that of the other, one a pair.

    Returns:
        `ece` (None without pairs), `num`, and `bins` that hold pairs.
    """
    by_bin: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for gap in gaps:
        confidence = 1 / (1 + exp(-min(abs(gap), 700)))
        place = min(int((confidence - 0.5) * 2 * NUM_BINS), NUM_BINS - 1)
        by_bin[place].append((confidence, 0.5 if gap == 0 else float(gap > 0)))
    bins = []
    for place, some in sorted(by_bin.items()):
        confidences, right = zip(*some, strict=True)
        bins.append(
            {
                "low": 0.5 + place / (2 * NUM_BINS),
                "high": 0.5 + (place + 1) / (2 * NUM_BINS),
                "num": len(some),
                "confidence": statistics.fmean(confidences),
                "accuracy": statistics.fmean(right),
            }
        )
    num = sum(one["num"] for one in bins)
    error = sum(one["num"] * abs(one["accuracy"] - one["confidence"]) for one in bins)
    return {"ece": error / num if num else None, "num": num, "bins": bins}


def length_correlation(scored: Sequence[ScoredPair]) -> dict[str, float | None]:
    """Spearman's rank correlation of reward with length; None where there is nothing to rank.

    `responses` is over all responses; prompts that ask for much make it large without any bias.
    `pairs` compares the two responses of a prompt: difference of scores with difference of lengths,
    each pair in both directions, so that it does not matter which one people preferred.
    """
    scores = [score for one in scored for score in (one.best, one.worst)]
    lengths = [length for one in scored for length in one.lengths]
    gaps = [sign * (one.best - one.worst) for one in scored for sign in (1, -1)]
    longer = [sign * (one.lengths[0] - one.lengths[1]) for one in scored for sign in (1, -1)]
    return {"responses": spearman(scores, lengths), "pairs": spearman(gaps, longer)}


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None for a constant or under three."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    ranks = [0.0] * len(values)
    before = 0
    order = sorted(range(len(values)), key=values.__getitem__)
    for _, group in groupby(order, key=values.__getitem__):
        equal = list(group)
        for place in equal:
            ranks[place] = before + (len(equal) + 1) / 2
        before += len(equal)
    return ranks


def _by(
    label: Callable[[ScoredPair], str], scored: Sequence[ScoredPair]
) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[ScoredPair]] = defaultdict(list)
    for one in scored:
        groups[label(one)].append(one)
    order = [*map(str, Strength), *LENGTH_DIFFERENCES]
    names = sorted(groups, key=lambda name: (order.index(name) if name in order else -1, name))
    return {name: _rates(groups[name]) for name in names if name}


def _rates(scored: Sequence[ScoredPair]) -> dict[str, Any]:
    num = len(scored)
    return {
        "accuracy": vars(wilson(sum(one.won for one in scored), num, CONFIDENCE)),
        "longer_wins": vars(wilson(sum(one.longer_won for one in scored), num, CONFIDENCE)),
    }


def _strength(one: ScoredPair) -> str:
    # A benchmark's pairs come without one and hold the default.
    return str(one.pair.strength) if "strength" in one.pair.model_fields_set else ""


def _source(one: ScoredPair) -> str:
    extra = one.pair.model_extra or {}
    return str(extra.get("source") or extra.get("subset") or one.pair.batch)


def _length_difference(one: ScoredPair) -> str:
    best, worst = one.lengths
    share = (best - worst) / max(best, worst, 1)
    place = (share >= -_LARGE) + (share >= -_SMALL) + (share > _SMALL) + (share > _LARGE)
    return LENGTH_DIFFERENCES[place]
