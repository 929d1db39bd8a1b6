"""How likely a model finds the assistant's turns of dialogs, in nats.

Knows token rows and a loaded model; knows no loss and no training.

    likely = assistant_log_probs(model, rows, pad_token_id=0)
    -sum(one.total for one in likely) / sum(one.tokens for one in likely)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

IGNORED = -100
"""The label of a token that is no target."""
MOST_LOGITS = 64_000_000
"""Numbers that a batch's logits may have: 256 MB in float32."""


class Likelihood(NamedTuple):
    """Of one dialog's assistant tokens."""

    total: float
    """Sum of log-probabilities, in nats."""
    tokens: int


def assistant_log_probs(
    model: PreTrainedModel, rows: Sequence[Mapping[str, np.ndarray[Any, Any]]], pad_token_id: int
) -> list[Likelihood]:
    """Of each row its targets' log-probabilities, however rows are batched.

    Args:
        model: a causal language model; it is left in evaluation mode.
        rows: `input_ids`, and `labels` that are -100 where a token is no target.
        pad_token_id: fills rows of a batch up.
    """
    model.eval()  # type: ignore[no-untyped-call]
    longest_first = sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))
    found: dict[int, Likelihood] = {}
    start = 0
    while start < len(longest_first):
        length = len(rows[longest_first[start]]["input_ids"])
        size = max(1, MOST_LOGITS // (length * int(model.config.vocab_size)))
        part = longest_first[start : start + size]
        found.update(zip(part, _batch(model, [rows[p] for p in part], pad_token_id), strict=True))
        start += size
    return [found[place] for place in range(len(rows))]


def _batch(
    model: PreTrainedModel, rows: Sequence[Mapping[str, np.ndarray[Any, Any]]], pad_token_id: int
) -> list[Likelihood]:
    ids, labels = (
        pad_sequence([torch.as_tensor(row[name]).long() for row in rows], True, fill)
        for name, fill in (("input_ids", pad_token_id), ("labels", IGNORED))
    )
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    targets = labels[:, 1:].to(model.device)
    wanted = targets != IGNORED
    log_probs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    of_targets = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * wanted
    totals, tokens = of_targets.double().sum(1).tolist(), wanted.sum(1).tolist()
    return [Likelihood(*one) for one in zip(totals, tokens, strict=True)]
