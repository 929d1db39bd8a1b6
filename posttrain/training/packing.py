"""Packs the dialogs of a batch into as few rows as fit, blind to each other; nothing is cut.

Knows token arrays and positions. Knows no trainer. Only the batch that a sampler has drawn is
packed, so packing changes no batch and no loss, just the padding.

    PackedBatches(pad_token_id=0)([{"input_ids": [1, 2], "labels": [-100, 2]}, ...])["input_ids"]
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from posttrain.likelihood import IGNORED


@dataclass(frozen=True)
class PackedBatches:
    """A collator for dialogs of different lengths."""

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """R rows of L tokens: `input_ids`, `labels` and `position_ids`, each of shape (R, L)."""
        batch = packed(features, {"input_ids": self.pad_token_id, "labels": IGNORED})
        del batch["dialogs"]
        return batch


def packed(
    dialogs: Sequence[Mapping[str, Any]], padding: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Dialogs of different lengths as rows of the longest one's length.

    So no attention is larger than without packing. Positions restart at each dialog and no
    attention mask is given: from that, models of transformers keep the dialogs of a row from
    seeing each other.

    Args:
        dialogs: Each with an array for each of the names.
        padding: Name → what stands where nothing is. `input_ids` is one of them; the others are of
            targets, and the first token of a dialog is none, as it follows on another dialog.

    Returns:
        The arrays as tensors (R, L), `position_ids`, and `dialogs`: each token's, -1 on padding.
    """
    lengths = [len(one["input_ids"]) for one in dialogs]
    rows = best_fit(lengths, max(lengths))
    shape = (len(rows), max(lengths))
    # Padding has position 0 throughout: each such token is a dialog of its own.
    fill = {**padding, "position_ids": 0, "dialogs": -1}
    batch = {name: np.full(shape, value, dtype=np.int64) for name, value in fill.items()}
    for place, members in enumerate(rows):
        start = 0
        for member in members:
            end = start + lengths[member]
            for name in padding:
                first = int(name != "input_ids")
                batch[name][place, start + first : end] = dialogs[member][name][first:]
            batch["position_ids"][place, start:end] = np.arange(lengths[member])
            batch["dialogs"][place, start:end] = member
            start = end
    return {name: torch.from_numpy(values) for name, values in batch.items()}


@dataclass(frozen=True)
class PaddedRows:
    """A collator for rows that are packed already; each knows its positions."""

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """B rows of L tokens: `input_ids`, `labels` and `position_ids`, each of shape (B, L)."""
        # Padding has position 0 throughout, see PackedBatches.
        fill = {"input_ids": self.pad_token_id, "labels": IGNORED, "position_ids": 0}
        return {
            name: pad_sequence([torch.tensor(one[name]).long() for one in features], True, value)
            for name, value in fill.items()
        }


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the items in each bin: best fit, the longest first; equal lengths in order.

    Raises:
        ValueError: an item is longer than a bin.
    """
    if max(lengths) > capacity:
        raise ValueError(f"an item of {max(lengths)} does not fit into {capacity}")
    bins: list[list[int]] = []
    left: list[tuple[int, int]] = []
    for item in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        place = bisect_left(left, (lengths[item], -1))
        if place == len(left):
            bins.append([])
            room, number = capacity, len(bins) - 1
        else:
            room, number = left.pop(place)
        bins[number].append(item)
        insort(left, (room - lengths[item], number))
    return bins
