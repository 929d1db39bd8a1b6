"""Dialogs to tokens: one rendering for training, sampling and scoring.

Knows chat templates and special tokens. Everything that turns messages into token ids calls
`render_prompt`, `render_dialog` or `dialog_ids`, so a template can never differ between stages.

    tokenizer = load_tokenizer(Path("rounds/tiny/base"))
    render_dialog(tokenizer, messages).target_mask
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from posttrain.errors import BadInput, GuardFailed
from posttrain.rows import Message

HEADER_START = "<|start_header_id|>"
HEADER_END = "<|end_header_id|>"
TERMINATION = ("<|eot_id|>", "<|eom_id|>")


@dataclass(frozen=True)
class Rendered:
    """A dialog of T tokens. The three sequences have length T."""

    input_ids: tuple[int, ...]
    target_mask: tuple[int, ...]
    """1 on every token of an assistant turn, its termination token included; 0 elsewhere."""
    format_mask: tuple[int, ...]
    """1 on header spans (start token through the blank line) and termination tokens."""


def load_tokenizer(folder: Path, template: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with the plan's chat template if one is given.

    Raises:
        BadInput: no tokenizer, no chat template, a template without generation markers,
            or no padding token of its own.
    """
    try:
        tokenizer = cast(
            PreTrainedTokenizerBase,
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: no tokenizer could be loaded ({error})") from error
    if template is not None:
        tokenizer.chat_template = template.read_text()
    if not tokenizer.chat_template:
        raise BadInput(f"{folder}: the tokenizer has no chat template; name one as chat.template")
    if "{% generation %}" not in tokenizer.chat_template.replace("{%-", "{%").replace("-%}", "%}"):
        raise BadInput(
            f"{template or folder}: the chat template has no {{% generation %}} markers around "
            "assistant turns, so no one can tell which tokens are targets"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in end_token_ids(tokenizer):
        raise BadInput(
            f"{folder}: the padding token must exist and differ from every end token "
            f"(pad is {tokenizer.pad_token!r}); add one to the tokenizer"
        )
    return tokenizer


def check_same_template(policy: Path, reward: Path, remedy: str) -> None:
    """A response is sampled and scored as the same dialog.

    Models of different vocabularies have templates of their own.

    Args:
        policy: folder of the model that answered.
        reward: folder of the model that scores, or of one it was trained from.
        remedy: the setting that names one template for both.

    Raises:
        BadInput: the two render dialogs of the same tokens differently.
    """
    one, other = load_tokenizer(policy), load_tokenizer(reward)
    if one.chat_template != other.chat_template and one.get_vocab() == other.get_vocab():
        raise BadInput(
            f"{policy} and {reward} share a vocabulary and differ in their chat templates, so a "
            f"response would be scored as another dialog than it was sampled in; name one for both "
            f"with {remedy}"
        )


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokens that end a turn or a text."""
    # Not get_vocab(): copying 128,000 entries for each dialog costs more than rendering it.
    known = tokenizer.get_added_vocab()
    ids = {known[token] for token in TERMINATION if token in known}
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    return frozenset(ids)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that the tokenizer reads as control tokens; none may occur inside a message.

    Added tokens that are ordinary text, such as runs of white space, are none.
    """
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    frame = {HEADER_START, HEADER_END, *TERMINATION} & set(tokenizer.get_added_vocab())
    return tuple(sorted(special | frame))


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Token ids of a prompt, up to and including the header of the assistant's turn.

    Raises:
        GuardFailed: the text does not start with exactly one beginning-of-text token.
    """
    return _encoded(tokenizer, messages, tools, for_response=True)["input_ids"]


def dialog_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Token ids of a finished dialog: `render_dialog`'s, without the masks that scoring needs not.

    Raises:
        GuardFailed: the text does not start with exactly one beginning-of-text token.
    """
    return _encoded(tokenizer, messages, tools)["input_ids"]


def render_dialog(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Rendered:
    """Tokens of a finished dialog with the masks that training needs.

    Raises:
        GuardFailed: not exactly one beginning-of-text token, a target mask that is empty or all
            ones, an assistant turn whose end token is no target, or a last turn whose prompt
            renders to something that is no prefix of the dialog.
    """
    fields = _encoded(tokenizer, messages, tools, with_mask=True)
    ids, targets = fields["input_ids"], fields["assistant_masks"]
    if not 0 < sum(targets) < len(targets):
        raise GuardFailed(
            f"the chat template marks {sum(targets)} of {len(targets)} tokens as targets of "
            f"{[m.role for m in messages]}: expected some, and not all"
        )
    _check_endings(tokenizer, ids, targets)
    if messages[-1].role == "assistant":
        prompt = render_prompt(tokenizer, messages[:-1], tools)
        if ids[: len(prompt)] != prompt or targets[len(prompt)] != 1 or targets[len(prompt) - 1]:
            raise GuardFailed(
                "a prompt is no token prefix of the same prompt with its response: the tokenizer "
                "merges text across the header's blank line; use a Llama-3 style pre-tokenizer"
            )
    return Rendered(tuple(ids), tuple(targets), tuple(format_mask(tokenizer, ids)))


def format_mask(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """1 on header spans and termination tokens (masked in DPO, section 4.1.4), else 0."""
    known = tokenizer.get_added_vocab()
    start, end = known.get(HEADER_START), known.get(HEADER_END)
    termination = end_token_ids(tokenizer)
    mask, in_header, after_header = [], False, False
    for token in ids:
        if token == start:
            in_header, after_header = True, False
        elif after_header and str(tokenizer.decode([token])).strip("\n") != "":
            after_header = False
        mask.append(int(in_header or after_header or token in termination))
        if in_header and token == end:
            in_header, after_header = False, True
    return mask


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a response; its end token, if it has one, left out."""
    kept = list(ids)
    if kept and kept[-1] in end_token_ids(tokenizer):
        kept = kept[:-1]
    return str(
        tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    for_response: bool = False,
    with_mask: bool = False,
) -> dict[str, list[int]]:
    """What the template makes of messages; the only call of it.

    Raises:
        GuardFailed: the text does not start with exactly one beginning-of-text token.
    """
    encoded = tokenizer.apply_chat_template(
        [m.to_json() for m in messages],
        tools=[dict(t) for t in tools or ()] or None,
        return_dict=True,
        add_generation_prompt=for_response,
        return_assistant_tokens_mask=with_mask,
    )
    fields = cast(Mapping[str, list[int]], encoded)
    _check_one_bos(tokenizer, fields["input_ids"])
    return {name: list(values) for name, values in fields.items()}


def _check_endings(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], targets: Sequence[int]
) -> None:
    """Each unbroken run of targets is an assistant turn, and has to teach the model to end it."""
    ends = end_token_ids(tokenizer)
    runs = groupby(zip(ids, targets, strict=True), key=lambda pair: pair[1])
    for target, run in runs:
        turn = [token for token, _ in run]
        if target and not ends.intersection(turn):
            known = sorted(str(tokenizer.decode([token])) for token in ends)
            raise GuardFailed(
                f"the targets of an assistant turn end in {tokenizer.decode(turn[-4:])!r} and hold "
                f"none of the end tokens {known}, so a model could never learn to stop; write the "
                "end token before {% endgeneration %} in the chat template"
            )


def _check_one_bos(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    count = list(ids).count(bos)
    if count != 1 or ids[0] != bos:
        raise GuardFailed(
            f"expected exactly one {tokenizer.bos_token} at the start, found {count}; does the "
            "chat template write it and the tokenizer add it as well?"
        )
