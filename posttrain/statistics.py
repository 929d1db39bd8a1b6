"""Intervals for rates: Wilson's for independent trials, a normal one for means over prompts.

Knows no rows; a stage says what one trial is.

    wilson(45, 60, 0.95)          # (0.628, 0.842)
    mean_interval([0.5, 1.0, 0.75], 0.95)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean, stdev


@dataclass(frozen=True)
class Rate:
    """A rate with its interval."""

    value: float
    low: float
    high: float
    num: int
    """Trials, or prompts where several trials share one."""


def wilson(successes: int, trials: int, confidence: float) -> Rate:
    """A proportion of independent trials with Wilson's score interval (Wilson 1927).

    Raises:
        ValueError: no trials.
    """
    if trials < 1:
        raise ValueError("a rate needs at least one trial")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    scale = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / scale
    half = z * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / scale
    return Rate(p, max(0.0, centre - half), min(1.0, centre + half), trials)


def mean_interval(values: Sequence[float], confidence: float) -> Rate:
    """A mean of per-prompt rates with a normal interval over prompts, cut to [0, 1].

    Samples of one prompt are not independent, so the prompt is the unit.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    mean = fmean(values)
    if len(values) == 1:
        return Rate(mean, 0.0, 1.0, 1)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * stdev(values) / sqrt(len(values))
    return Rate(mean, max(0.0, mean - half), min(1.0, mean + half), len(values))
