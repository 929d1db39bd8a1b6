"""Rankings as the tensors of one forward pass, in three layouts that give the same scores.

Knows tokens, shapes and orders (section 4.1.2). Knows no model: `posttrain.training.shared_prompt`
computes the scores. Shapes: B rankings with R responses in all, those of a ranking side by side
and best first; P pairs; T tokens, padded on the right.

    collate = Collator("packed", pad_token_id, isolate=True, seed=0)
    collate(rows)["input_ids"]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, combinations
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from posttrain.rows import stable_seed

Layout = Literal["packed", "prefix", "rows"]
Batch = dict[str, Any]

PADDING = -1
# What layouts cost, in pairs of a query and a key; measured on a CPU with a model of 128 numbers.
PAIRS_PER_TOKEN = 10
"""All else that a layer does with a token, a number of the hidden size."""
PAIRS_PER_COPY = 64
"""Copying a token's keys and values."""
EXTRA_TOKENS = 32
"""Finding its way in a packed row costs a pass as much as this many tokens."""


class Ranking(NamedTuple):
    """One row of `reward_tokens`."""

    prompt: list[int]
    responses: list[list[int]]
    """Best first."""
    key: int


@dataclass
class Collator:
    """Lays out the rankings of a batch.

    The order of responses within a packed row depends on `seed`, the row and `epoch` alone, so a
    resumed training finds it again; whoever runs the epochs sets `epoch`.
    """

    layout: Layout
    pad_token_id: int
    isolate: bool
    seed: int
    epoch: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """What the layout's forward pass takes, and beside it:

        `ends` [R]: where each response's last token stands in the flattened `input_ids`; `better`,
        `worse` [P]: each pair's responses; `num_tokens` []: without padding.
        """
        rankings = [read(row) for row in rows]
        if self.layout == "rows":
            batch = self._rows(rankings)
        elif self.layout == "prefix":
            batch = self._prefix(rankings)
        else:
            batch = self._packed(rankings) if self.isolate else self._plain(rankings)
        return {**batch, **_pairs([len(one.responses) for one in rankings])}

    def order(self, ranking: Ranking) -> list[int]:
        """Ranks in the order in which a packed row holds them."""
        places = range(len(ranking.responses))
        draws = [
            stable_seed("responses", self.seed, ranking.key, self.epoch, rank) for rank in places
        ]
        return sorted(places, key=lambda rank: (draws[rank], rank))

    def _rows(self, rankings: Sequence[Ranking]) -> Batch:
        """`input_ids`, `attention_mask` [R, T]."""
        rows = [one.prompt + response for one in rankings for response in one.responses]
        input_ids, mask = self._padded(rows)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "ends": _flat([[len(row) - 1] for row in rows], input_ids.shape[1]),
            "num_tokens": mask.sum(),
        }

    def _prefix(self, rankings: Sequence[Ranking]) -> Batch:
        """`prompt_ids`, `prompt_mask` [B, T1]; `owners` [R], each response's prompt; `input_ids`,
        `position_ids` [R, T2]; `attention_mask` [R, T1 + T2].
        """
        prompt_ids, prompt_mask = self._padded([one.prompt for one in rankings])
        responses = [response for one in rankings for response in one.responses]
        input_ids, mask = self._padded(responses)
        owners = torch.tensor([b for b, one in enumerate(rankings) for _ in one.responses])
        starts = prompt_mask.sum(1)[owners]
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "owners": owners,
            "input_ids": input_ids,
            "position_ids": starts.unsqueeze(1) + torch.arange(input_ids.shape[1]),
            "attention_mask": torch.cat([prompt_mask[owners], mask], 1),
            "ends": _flat([[len(response) - 1] for response in responses], input_ids.shape[1]),
            "num_tokens": prompt_mask.sum() + mask.sum(),
        }

    def _packed(self, rankings: Sequence[Ranking]) -> Batch:
        """All prompts, then all responses, in one row without padding: `input_ids`, `position_ids`
        [1, N], and `packed`, how attention finds its way among them (see `Groups`).
        """
        orders = [self.order(one) for one in rankings]
        prompts = [one.prompt for one in rankings]
        ordered = [
            [one.responses[rank] for rank in order]
            for one, order in zip(rankings, orders, strict=True)
        ]
        together = _together(rankings)
        groups = ordered if together else [[response] for own in ordered for response in own]
        joined = [list(chain(*group)) for group in groups]
        sizes = [len(response) for own in ordered for response in own]
        starts = [len(one.prompt) for one in rankings for _ in one.responses]
        positions = [torch.arange(len(prompt)) for prompt in prompts] + [
            torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)
        ]
        columns = [_columns(prompts), _columns(joined)]
        (places,) = (torch.cat([one.flatten() for one in columns]) >= 0).nonzero(as_tuple=True)
        numbers = [n for n, own in enumerate(ordered) for _ in ([own] if together else own)]
        packed: dict[str, Any] = {
            "prompts": columns[0],
            "groups": columns[1],
            "segments": _filled(
                [[i for i, one in enumerate(group) for _ in one] for group in groups]
            ),
            "lasts": _filled([[e - 1 for e in accumulate(map(len, group))] for group in groups]),
            "owners": torch.tensor(numbers),
            "places": places,
            "split": sum(map(len, prompts)),
        }
        ends = packed["split"] - 1 + torch.tensor(list(accumulate(sizes)))
        return {
            "input_ids": torch.tensor([list(chain(*prompts, *joined))]),
            "position_ids": torch.cat(positions).unsqueeze(0),
            "packed": packed,
            "ends": ends[_ranked(orders)],
            "num_tokens": torch.tensor(len(places)),
        }

    def _plain(self, rankings: Sequence[Ranking]) -> Batch:
        """One row without isolation: `input_ids`, `attention_mask` [B, T]."""
        rows, ends = [], []
        for one in rankings:
            row, end = list(one.prompt), [0] * len(one.responses)
            for rank in self.order(one):
                row += one.responses[rank]
                end[rank] = len(row) - 1
            rows.append(row)
            ends.append(end)
        input_ids, mask = self._padded(rows)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "ends": _flat(ends, input_ids.shape[1]),
            "num_tokens": mask.sum(),
        }

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = pad_sequence([torch.tensor(row) for row in rows], True, self.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()


def read(row: Mapping[str, Any]) -> Ranking:
    """A row of `reward_tokens`, as arrays or as a dataset gives it back."""
    joined = [int(token) for token in row["response_ids"]]
    responses, start = [], 0
    for length in row["response_lengths"]:
        responses.append(joined[start : start + length])
        start += length
    return Ranking([int(token) for token in row["prompt_ids"]], responses, int(row["key"][0]))


def pick_layout(
    rows: Sequence[Mapping[str, Any]], hidden_size: int, rankings_per_pass: int
) -> Layout:
    """`packed` where sharing prompts saves more than it costs, else `rows`.

    `prefix` computes the same as `packed` in two passes, and never gains on it.

    Args:
        rows: Those of `reward_tokens`.
        hidden_size: Of the model.
        rankings_per_pass: Rankings of one forward pass.
    """
    token = PAIRS_PER_TOKEN * hidden_size
    packed, apart = EXTRA_TOKENS * token * len(rows) / rankings_per_pass, 0.0
    for row in rows:
        prompt, lengths = len(row["prompt_ids"]), [int(one) for one in row["response_lengths"]]
        packed += (prompt + sum(lengths)) * token + prompt**2 / 2
        packed += min(_pairs_together(prompt, lengths), _pairs_alone(prompt, lengths))
        apart += sum((prompt + one) * token + (prompt + one) ** 2 / 2 for one in lengths)
    return "packed" if packed < apart else "rows"


def _together(rankings: Sequence[Ranking]) -> bool:
    """Whether the responses of a prompt are better computed as one group, or each with a copy of
    the prompt's keys.
    """
    sizes = [(len(one.prompt), list(map(len, one.responses))) for one in rankings]
    return sum(_pairs_together(*size) for size in sizes) <= sum(
        _pairs_alone(*size) for size in sizes
    )


def _pairs_together(prompt: int, lengths: Sequence[int]) -> int:
    return sum(lengths) * (prompt + sum(lengths))


def _pairs_alone(prompt: int, lengths: Sequence[int]) -> int:
    return sum((one + PAIRS_PER_COPY) * (prompt + one) for one in lengths)


def _ranked(orders: Sequence[Sequence[int]]) -> torch.Tensor:
    """For each response, best first, its place when those of a ranking stand in their order."""
    places, start = [], 0
    for order in orders:
        places += [start + order.index(rank) for rank in range(len(order))]
        start += len(order)
    return torch.tensor(places)


def _filled(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], True, PADDING)


def _columns(parts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Where the tokens of each part stand when all stand in one row; -1 on padding."""
    ends = list(accumulate(map(len, parts)))
    columns = [torch.arange(end - len(part), end) for part, end in zip(parts, ends, strict=True)]
    return pad_sequence(columns, True, PADDING)


def num_tokens(row: Mapping[str, Any]) -> int:
    """Tokens of a row, its prompt once."""
    return len(row["prompt_ids"]) + len(row["response_ids"])


def _flat(columns: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Columns within rows, as places in the flattened batch."""
    return torch.tensor([row * width + one for row, own in enumerate(columns) for one in own])


def _pairs(sizes: Sequence[int]) -> Batch:
    """All K(K-1)/2 pairs of each ranking, as places among the responses of all."""
    pairs, start = [], 0
    for size in sizes:
        pairs += list(combinations(range(start, start + size), 2))
        start += size
    better, worse = torch.tensor(pairs).unbind(1)
    return {"better": better, "worse": worse}
