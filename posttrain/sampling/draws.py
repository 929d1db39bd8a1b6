"""Picks a next token for each row from its own stream of random numbers.

A number depends on a row's seed and on how many tokens the row has, and on nothing else: no
generator is carried along, so a sample is the same whatever is in the batch and in which order.
(Logits are equal only up to rounding between batches; a draw that falls into that gap, one in
some million, may still differ.) Knows nothing of models or tokenizers.

    draw_tokens(logits_RV, uniforms(seeds_R, step=0), temperature_R, top_p_R)

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from posttrain.errors import GuardFailed

# The constants of splitmix64 (Steele, Lea and Flood, 2014), a mixer of 64-bit counters.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_BITS = 48


def uniforms(seeds: Sequence[int], step: int) -> npt.NDArray[np.float64]:
    """One number in [0, 1) a seed, for the token with index `step`."""
    with np.errstate(over="ignore"):
        streams_R = _mixed(np.asarray(seeds, dtype=np.uint64))
        counters_R = streams_R + np.uint64(step + 1) * _GAMMA
    # Fewer bits than a float64 holds: u times a total near 1 then stays below the total.
    return (_mixed(counters_R) >> np.uint64(64 - _BITS)).astype(np.float64) / float(1 << _BITS)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        values = values + _GAMMA
        values = (values ^ (values >> np.uint64(30))) * _MIX_1
        values = (values ^ (values >> np.uint64(27))) * _MIX_2
        return values ^ (values >> np.uint64(31))


def draw_tokens(
    logits_RV: torch.Tensor,
    uniforms_R: npt.NDArray[np.float64],
    temperature_R: torch.Tensor,
    top_p_R: torch.Tensor,
) -> torch.Tensor:
    """Token ids (R): the inverse of the cumulative distribution at each row's number.

    A temperature of 0 takes the likeliest token. top_p keeps the smallest set of likeliest tokens
    whose probability reaches it.

    Raises:
        GuardFailed: the logits of a row hold NaN or no finite number.
    """
    greedy_R = temperature_R == 0
    # Greedy rows go through the same division; their result is replaced below.
    scaled_RV = logits_RV.double() / torch.where(greedy_R, 1.0, temperature_R)[:, None]
    probs_RV = torch.softmax(scaled_RV, dim=-1)
    if bool((top_p_R < 1).any()):
        probs_RV = _top_p(probs_RV, top_p_R)
    cumulative_RV = probs_RV.cumsum(-1)
    total_R = cumulative_RV[:, -1]
    if not bool(torch.isfinite(total_R).all()):
        raise GuardFailed("the model's logits hold NaN: its weights are damaged or overflow dtype")
    target_R = torch.from_numpy(uniforms_R).to(total_R.device) * total_R
    drawn_R = torch.searchsorted(cumulative_RV, target_R[:, None], right=True)[:, 0]
    return torch.where(greedy_R, logits_RV.argmax(-1), drawn_R)


def _top_p(probs_RV: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    sorted_RV, order_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    # A row without top_p keeps all: rounding may bring the sum to 1 before the last token.
    dropped_RV = (before_RV >= top_p_R[:, None]) & (top_p_R < 1)[:, None]
    kept_RV = sorted_RV.masked_fill(dropped_RV, 0.0)
    return torch.zeros_like(probs_RV).scatter(-1, order_RV, kept_RV)
