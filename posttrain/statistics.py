"""Intervals for rates: Wilson's for independent trials, normal ones for means over prompts.

Knows no rows; a stage says what one trial is.

    wilson(45, 60, 0.95)          # (0.628, 0.842)
    mean_interval([0.5, 1.0, 0.75], 0.95)
"""

from collections.abc import Mapping, Sequence
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


def stratified_mean(
    values: Mapping[str, Sequence[float]], weights: Mapping[str, float], confidence: float
) -> Rate:
    """The weighted mean of the strata's means, with a normal interval; not cut to [0, 1].

    Strata are independent, so the variances of their weighted means add up. For two models on the
    same prompts, give the differences prompt by prompt: the interval is then a paired one.

    Args:
        values: Stratum (a capability) → one value a prompt.
        weights: Stratum → its weight; those of the strata present are scaled to sum to 1.
        confidence: Coverage, between 0 and 1.

    Raises:
        ValueError: no values, or none with a weight.
    """
    total = sum(weights[name] for name, some in values.items() if some)
    if total <= 0:
        raise ValueError("a mean needs values with a weight")
    mean, variance = 0.0, 0.0
    for name, some in values.items():
        if some:
            weight = weights[name] / total
            mean += weight * fmean(some)
            # One value says nothing about its spread: as wide as a difference of rates can be.
            spread = stdev(some) if len(some) > 1 else 1.0
            variance += weight**2 * spread**2 / len(some)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * sqrt(variance)
    return Rate(mean, mean - half, mean + half, sum(map(len, values.values())))
