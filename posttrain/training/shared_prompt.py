"""The score of every response at its own end, with the prompt computed once where it is shared.

Knows attention, key-value caches and score heads. Knows no loss and no data set. Shapes as in
`posttrain.training.rankings`: B prompts, R responses, T tokens, N tokens in one row without
padding; H heads of D numbers.

    read_at_ends(model)
    scores_R = model(**batch)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import dropout, softmax
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

FUSED, PLAIN = "shared_prompt_fused", "shared_prompt_plain"
"""Names under which transformers knows `grouped_attention`, instead of `sdpa` and `eager`."""


@dataclass(frozen=True)
class Groups:
    """What attention computes together in a packed row: a prompt, one response, or all responses
    of a prompt. G groups of responses in the order of the row, with up to K responses each.
    """

    prompts: torch.Tensor
    """Where the tokens of each prompt stand among those of all prompts [B, T1], -1 on padding."""
    groups: torch.Tensor
    """Where the tokens of each group stand among those of all responses [G, T2], -1 on padding."""
    segments: torch.Tensor
    """Which response of its group a token belongs to [G, T2], -1 on padding."""
    lasts: torch.Tensor
    """The columns of `groups` in which responses end [G, K], -1 where there are fewer."""
    owners: torch.Tensor
    """Each group's prompt [G]."""
    places: torch.Tensor
    """Where each token stands in the flattened `prompts` and, after them, `groups` [N]."""
    split: int
    """Tokens of all prompts."""

    def mask(self) -> torch.Tensor:
        """What a response's token may look at: its prompt, and its own response up to itself.

        Returns:
            Booleans [G, 1, T2, T1 + T2]. Padding looks at padding: a row of nothing but False
            would be NaN in some attentions.
        """
        own = (self.segments.unsqueeze(2) == self.segments.unsqueeze(1)).tril()
        prompt = (self.prompts >= 0)[self.owners].unsqueeze(1)
        return torch.cat([prompt.expand(-1, own.shape[1], -1), own], 2).unsqueeze(1)


def read_at_ends(model: PreTrainedModel | PeftModel, packed: bool) -> None:
    """Have a model with a score head compute `score_responses` as its forward pass.

    Everything happens within the model's own call, so that what wraps it (autocast, adapters,
    several processes) sees a forward pass like any other.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if packed:
        AttentionInterface.register(FUSED, partial(grouped_attention, sdpa_attention_forward))
        AttentionInterface.register(PLAIN, partial(grouped_attention, _plain_attention))
        plain = inner.config._attn_implementation == "eager"
        inner.set_attn_implementation(PLAIN if plain else FUSED)
    inner.forward = MethodType(score_responses, inner)


def score_responses(
    model: Any,
    input_ids: torch.Tensor,
    ends: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    packed: Mapping[str, Any] | None = None,
    prompt_ids: torch.Tensor | None = None,
    prompt_mask: torch.Tensor | None = None,
    owners: torch.Tensor | None = None,
    **unused: Any,
) -> torch.Tensor:
    """Scores [R] of a batch of `Collator`, whose parts tell the layout.

    Args:
        model: A sequence classification model with one label.
        input_ids: Tokens [B or R, T], packed [1, N].
        ends: Each response's last token [R], a place in the flattened `input_ids`.
        attention_mask: 1 on tokens, 0 on padding; with a prompt of its own that comes first.
        position_ids: Positions of `input_ids`; None counts from 0.
        packed: `packed`: the parts of `Groups`.
        prompt_ids: `prefix`: the prompts [B, T1].
        prompt_mask: `prefix`: 1 on tokens, 0 on padding [B, T1].
        owners: `prefix`: each response's prompt [R].
        unused: What adapters pass along.
    """
    options: dict[str, Any] = {"use_cache": False}
    mask = attention_mask
    if packed is not None:
        options["groups"] = Groups(**packed)
        # Returned as it is where masks are made, since it has four dimensions.
        mask = options["groups"].mask()
    elif prompt_ids is not None and owners is not None:
        cache = _prompt_cache(model, prompt_ids, prompt_mask, owners)
        options = {"use_cache": True, "past_key_values": cache}
    outputs = model.base_model(
        input_ids=input_ids, attention_mask=mask, position_ids=position_ids, **options
    )
    hidden = outputs.last_hidden_state.flatten(0, 1)
    scores: torch.Tensor = model.score(hidden.index_select(0, ends))[:, 0]
    return scores


def grouped_attention(
    kernel: Any,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    groups: Groups,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row: prompts to themselves, each response to its prompt and itself.

    No matrix of all tokens by all tokens is ever made, and the prompts' part, plainly causal since
    padding comes last, takes the kernel without a mask. What the last layer makes of a token is
    read at the responses' ends alone, and is computed only there.

    Args:
        kernel: An attention function as transformers defines them.
        module: The attention layer.
        query: [1, H, N, D].
        key: [1, H or fewer, N, D].
        value: [1, H or fewer, N, D].
        attention_mask: That of the responses, see `Groups.mask`.
        groups: Which tokens belong together.
        options: Scale and dropout.

    Returns:
        [1, N, H, D], and no weights.
    """
    rows = [one[0].transpose(0, 1) for one in (query, key, value)]
    prompt = [_grouped(row[: groups.split], groups.prompts) for row in rows]
    asked, *own = (_grouped(row[groups.split :], groups.groups) for row in rows)
    keys, values = key, value
    if len(groups.owners) > 1:
        keys, values = (
            torch.cat([_repeated(shared, groups.owners), alone], 2)
            for shared, alone in zip(prompt[1:], own, strict=True)
        )
    if module.layer_idx == module.config.num_hidden_layers - 1:
        lasts = groups.lasts.clamp(min=0)
        numbers = torch.arange(len(lasts), device=lasts.device).unsqueeze(1)
        seen = attention_mask[numbers, 0, lasts].unsqueeze(1)
        asked = asked.transpose(1, 2)[numbers, lasts].transpose(1, 2)
        found, _ = kernel(module, asked, keys, values, seen, **options)
        there = groups.lasts >= 0
        ends = groups.split + groups.groups.gather(1, lasts)[there]
        return torch.zeros_like(rows[0]).index_copy(0, ends, found[there]).unsqueeze(0), None
    before, _ = kernel(module, *prompt, None, **options)
    after, _ = kernel(module, asked, keys, values, attention_mask, **options)
    both = torch.cat([before.flatten(0, 1), after.flatten(0, 1)])
    if len(both) > len(groups.places):
        both = both.index_select(0, groups.places)
    return both.unsqueeze(0), None


def _grouped(row: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The tokens of a row [N, H, D] as [B, H, T, D], given where each one stands [B, T]."""
    if columns.numel() > len(row):
        row = row.index_select(0, columns.clamp(min=0).flatten())
    return row.view(*columns.shape, *row.shape[1:]).transpose(1, 2)


def _repeated(prompts: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """The prompt of each group; as they are where each prompt has one group."""
    return prompts if len(owners) == len(prompts) else prompts.index_select(0, owners)


def _plain_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention written out, causal without a mask; [B, T, H, D] and no weights."""
    repeats = query.shape[1] // key.shape[1]
    logits = query @ repeat_kv(key, repeats).transpose(2, 3) * scaling
    if attention_mask is None:
        attention_mask = torch.ones_like(logits[:1, :1], dtype=torch.bool).tril()
    hidden = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
    weights = softmax(hidden, -1, dtype=torch.float32).to(query.dtype)
    weights = dropout(weights, options.get("dropout", 0.0), module.training)
    return (weights @ repeat_kv(value, repeats)).transpose(1, 2), None


def _prompt_cache(
    model: Any, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor | None, owners: torch.Tensor
) -> Cache:
    """Keys and values of the prompts, one copy for each response; gradients flow through."""
    outputs = model.base_model(input_ids=prompt_ids, attention_mask=prompt_mask, use_cache=True)
    cache: Cache = outputs.past_key_values
    cache.reorder_cache(owners)  # type: ignore[arg-type]  # any tensor of integers will do
    return cache
