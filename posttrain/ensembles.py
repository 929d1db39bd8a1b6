"""One score from the scores of several reward models, for selection that one model cannot fool.

Knows numbers alone. A reward model is trained on differences, so where its scores lie is arbitrary,
and how far they spread grows with its learning rate and steps. Each member's scores are therefore
brought to mean 0 and standard deviation 1 over the same rows first: else the member with the
largest scale would decide alone, and offsets would pass for disagreement. Such scores compare rows
that were scored together, and no others.

    lower_bounds({"rm-a": [0.1, 2.0], "rm-b": [-3.0, 5.0]}, penalty=1.0)
"""

from collections.abc import Mapping, Sequence

import numpy as np


def lower_bounds(scores: Mapping[str, Sequence[float]], penalty: float) -> list[float]:
    """Mean over the members minus `penalty` times their standard deviation, row by row.

    Args:
        scores: member → score of each of N rows, in the same order.
        penalty: 0 for the mean alone.

    Returns:
        N scores in standard deviations; a member whose scores are all equal adds nothing.
    """
    scores_MN = np.array([list(one) for one in scores.values()], dtype=np.float64)
    if not scores_MN.size:
        return []
    centred_MN = scores_MN - scores_MN.mean(axis=1, keepdims=True)
    spread_M1 = scores_MN.std(axis=1, keepdims=True)
    # Of equal scores, the deviation is a rounding error.
    varies_M1 = np.ptp(scores_MN, axis=1, keepdims=True) > 0
    standard_MN = np.divide(centred_MN, spread_M1, out=np.zeros_like(centred_MN), where=varies_M1)
    lower_N = standard_MN.mean(axis=0) - penalty * standard_MN.std(axis=0)
    return [float(one) for one in lower_N]
