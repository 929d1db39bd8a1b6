"""Rows to token ids and masks, once and up front; every row that is left out has its reason.

Knows rendering and lengths. Knows no trainer. Nothing is ever cut: a row fits or is dropped.

    rows, dropped = sft_tokens(tokenizer, examples, max_length=4096)
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from posttrain.errors import BadInput, GuardFailed
from posttrain.likelihood import IGNORED
from posttrain.models.chat import Rendered, render_dialog, render_prompt
from posttrain.rows import Example, Message, Preference, Tools, stable_seed
from posttrain.training.job import Dropped

TokenRow = dict[str, np.ndarray[Any, np.dtype[np.int32]]]
"""Arrays, since a list of numbers takes nine times the memory."""
ROWS = "rows"
"""In a token row the place of the row it was made of, in a batch those of its rows."""
Tokens = tuple[list[TokenRow], list[Dropped]]


def sft_tokens(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], max_length: int
) -> Tokens:
    """`input_ids` and `labels` of each example, as often as it repeats; all assistant turns are
    targets (section 4.1.3).

    Raises:
        BadInput: no row is left.
    """
    kept: list[TokenRow] = []
    dropped: list[Dropped] = []
    for place, row in enumerate(rows):
        rendered = render_dialog(tokenizer, row.messages, row.tools)
        if len(rendered.input_ids) > max_length:
            dropped.append((row.id, _too_long(max_length)))
            continue
        marked = zip(rendered.input_ids, rendered.target_mask, strict=True)
        labels = [token if target else IGNORED for token, target in marked]
        tokens = {"input_ids": _array(rendered.input_ids), "labels": _array(labels)}
        kept += [{**tokens, ROWS: _array([place])}] * row.repeat
    return _some(kept, dropped, len(rows))


def response_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None
) -> TokenRow:
    """`input_ids` and `labels` of a dialog of which the last turn alone is a target."""
    num_prompt = len(render_prompt(tokenizer, messages[:-1], tools))
    rendered = render_dialog(tokenizer, messages, tools)
    marked = enumerate(zip(rendered.input_ids, rendered.target_mask, strict=True))
    labels = [
        token if target and place >= num_prompt else IGNORED for place, (token, target) in marked
    ]
    return {"input_ids": _array(rendered.input_ids), "labels": _array(labels)}


def reward_tokens(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Preference],
    max_length: int,
    isolate: bool = True,
) -> Tokens:
    """One ranking a row, its prompt once (section 4.1.2).

    `prompt_ids` end with the header of the assistant's turn; `response_ids` are what follows in
    each response's own dialog, best first, one after the other, of `response_lengths`; `key` is a
    number that stands for the row's id.

    Args:
        tokenizer: Renders the dialogs.
        rows: The rankings.
        max_length: Tokens that a prompt with one response may have; with all of them where
            responses are not isolated.
        isolate: Whether each response is blind to the others.

    Raises:
        BadInput: no row is left.
        GuardFailed: a prompt is no token prefix of its dialog.
    """
    kept: list[TokenRow] = []
    dropped: list[Dropped] = []
    for number, row in enumerate(rows):
        prompt = render_prompt(tokenizer, row.prompt, row.tools)
        best_first = [
            _dialog(tokenizer, row, prompt, response, f"response {place}").input_ids
            for place, response in enumerate(row.ranking(), start=1)
        ]
        responses = [ids[len(prompt) :] for ids in best_first]
        joined = [token for ids in responses for token in ids]
        reason = _unusable(best_first, max_length)
        if not reason and not isolate and len(prompt) + len(joined) > max_length:
            reason = f"prompt and responses together are {_too_long(max_length)}"
        if reason:
            dropped.append((row.id, reason))
            continue
        kept.append(
            {
                "prompt_ids": _array(prompt),
                "response_ids": _array(joined),
                "response_lengths": _array([len(ids) for ids in responses]),
                "key": _array([stable_seed(row.id)]),
                ROWS: _array([number]),
            }
        )
    return _some(kept, dropped, len(rows))


def dpo_tokens(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Preference],
    max_length: int,
    mask_format_tokens: bool,
) -> Tokens:
    """Best and last response of each ranking, each with the masks of the two terms.

    For both sides: `*_ids` (prompt and response), `*_target` (1 on the response's assistant
    tokens) and `*_dpo` (the same, without format tokens where they are masked; section 4.1.4).

    Raises:
        BadInput: no row is left.
        GuardFailed: a prompt is no token prefix of its dialog.
    """
    kept: list[TokenRow] = []
    dropped: list[Dropped] = []
    for place, row in enumerate(rows):
        prompt = render_prompt(tokenizer, row.prompt, row.tools)
        ranking = row.ranking()
        tokens: TokenRow = {ROWS: _array([place])}
        for side, response in (("chosen", ranking[0]), ("rejected", ranking[-1])):
            tokens |= _side(tokenizer, row, prompt, response, side, mask_format_tokens)
        sides = [tuple(tokens[name].tolist()) for name in ("chosen_ids", "rejected_ids")]
        reason = _unusable(sides, max_length)
        if not reason and not (tokens["chosen_dpo"].any() and tokens["rejected_dpo"].any()):
            reason = "a response has no tokens but format tokens"
        if reason:
            dropped.append((row.id, reason))
        else:
            kept.append(tokens)
    return _some(kept, dropped, len(rows))


def in_memory(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """A dataset that `datasets` neither hashes nor caches on disk."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return Dataset(InMemoryTable.from_pydict(columns), fingerprint="in-memory")


def digest_of(rows: Sequence[TokenRow]) -> str:
    """A text that is equal for equal rows alone."""
    digest = hashlib.sha256()
    for row in rows:
        for name, values in sorted(row.items()):
            digest.update(f"{name} {len(values)} ".encode() + values.tobytes())
    return digest.hexdigest()


def _side(
    tokenizer: PreTrainedTokenizerBase,
    row: Preference,
    prompt: list[int],
    response: tuple[Message, ...],
    side: str,
    mask_format_tokens: bool,
) -> TokenRow:
    rendered = _dialog(tokenizer, row, prompt, response, f"the {side} response")
    target = [0] * len(prompt) + list(rendered.target_mask[len(prompt) :])
    marks = zip(target, rendered.format_mask, strict=True)
    dpo = [int(t and not (f and mask_format_tokens)) for t, f in marks]
    parts = {"ids": rendered.input_ids, "target": target, "dpo": dpo}
    return {f"{side}_{name}": _array(values) for name, values in parts.items()}


def _dialog(
    tokenizer: PreTrainedTokenizerBase,
    row: Preference,
    prompt: list[int],
    response: tuple[Message, ...],
    name: str,
) -> Rendered:
    """A prompt with one response, which starts with the prompt's own tokens."""
    rendered = render_dialog(tokenizer, (*row.prompt, *response), row.tools)
    if list(rendered.input_ids[: len(prompt)]) != prompt:
        raise GuardFailed(
            f"{row.id}: the prompt is no token prefix of its dialog with {name}; "
            "the chat template renders a prompt differently once a response follows"
        )
    return rendered


def _array(values: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.asarray(values, dtype=np.int32)


def _unusable(responses: Sequence[tuple[int, ...]], max_length: int) -> str:
    """Why rendered responses cannot be compared, or an empty text."""
    if len(responses) < 2:
        return "a ranking of one response"
    if max(map(len, responses)) > max_length:
        return _too_long(max_length)
    if len(set(responses)) < len(responses):
        return "two responses render to the same tokens"
    return ""


def _too_long(max_length: int) -> str:
    return f"longer than {max_length} tokens"


def _some(kept: list[TokenRow], dropped: list[Dropped], count: int) -> Tokens:
    if not kept:
        reasons = Counter(reason for _, reason in dropped)
        listed = "; ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        raise BadInput(f"none of {count} rows can be trained on: {listed or 'there are no rows'}")
    return kept, dropped
