"""Sizes of sources that come near wanted shares.

Knows numbers alone.

    target_sizes({"math": 10, "code": 90}, {"math": 0.5, "code": 0.5}, max_repeat=4)
"""

import math
from collections.abc import Mapping
from fractions import Fraction


def target_sizes(
    available: Mapping[str, int],
    shares: Mapping[str, float],
    max_repeat: int,
    max_total: int | None = None,
) -> dict[str, int]:
    """How many rows or tokens, repeats counted, each source gives.

    The total is the largest that keeps the wanted shares without repeating a source more than
    `max_repeat` times, and without repeating the one that is largest for its share at all:
    repeating everything would only lengthen the epoch. A source without any gives its share to the
    others in proportion.
    """
    wanted = {c: Fraction(str(shares[c])) for c in sorted(shares) if shares[c] and available.get(c)}
    whole = sum(wanted.values())
    if not whole:
        return {}
    # A source of n rows alone would allow a total of n / share.
    alone = {c: available[c] * whole / share for c, share in wanted.items()}
    total = math.floor(min(max(alone.values()), max_repeat * min(alone.values())))
    if max_total is not None:
        total = min(total, max_total)
    exact = {c: total * share / whole for c, share in wanted.items()}
    sizes = {c: math.floor(size) for c, size in exact.items()}
    # Largest remainders take what rounding down left.
    by_remainder = sorted(wanted, key=lambda c: (sizes[c] - exact[c], c))
    for capability in by_remainder[: total - sum(sizes.values())]:
        sizes[capability] += 1
    return sizes
