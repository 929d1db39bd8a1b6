"""Packing: every dialog once and whole, and the same loss and gradients as rows of their own."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.models.folders import load_causal
from posttrain.training.packing import PackedBatches, best_fit
from posttrain.training.tokens import IGNORED
from tests.test_packaging import ROOT


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_every_item_is_in_one_bin_and_no_bin_overflows(lengths: list[int]) -> None:
    capacity = max(lengths)
    bins = best_fit(lengths, capacity)
    assert sorted(item for one in bins for item in one) == list(range(len(lengths)))
    loads = [sum(lengths[item] for item in one) for one in bins]
    assert max(loads) <= capacity
    assert bins == best_fit(list(lengths), capacity)
    # Two bins that are both at most half full would have been one.
    assert sum(2 * load <= capacity for load in loads) <= 1


def test_an_item_longer_than_a_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        best_fit([5], 4)


def dialogs(num: int, seed: int) -> list[dict[str, list[int]]]:
    rng = random.Random(seed)
    made = []
    for _ in range(num):
        ids = [rng.randrange(8, 500) for _ in range(rng.randint(4, 40))]
        split = rng.randint(1, len(ids) - 1)
        made.append({"input_ids": ids, "labels": [IGNORED] * split + ids[split:]})
    return made


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_dialogs_do_not_see_each_other(attention: str) -> None:
    model = load_causal(ROOT / "rounds/tiny/base")
    model.set_attn_implementation(attention)
    rows = dialogs(12, seed=1)
    batch = PackedBatches(pad_token_id=6)(rows)
    assert len(batch["input_ids"]) < len(rows)
    total = (batch["labels"] != IGNORED).sum()
    assert total == sum(label != IGNORED for row in rows for label in row["labels"])

    def loss_and_gradient(batches: list[dict[str, torch.Tensor]]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        value = 0.0
        for one in batches:
            loss = model(**one, use_cache=False, num_items_in_batch=total).loss
            loss.backward()
            value += float(loss.detach())
        return value, torch.cat([p.grad.flatten() for p in model.parameters()])

    alone = [{k: torch.tensor([v]) for k, v in row.items()} for row in rows]
    expected, expected_gradient = loss_and_gradient(alone)
    found, gradient = loss_and_gradient([batch])
    assert found == pytest.approx(expected, rel=1e-5)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
