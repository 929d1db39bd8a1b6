"""What all engines do alike around the model: render requests, cut responses, bound choices.

Knows requests and tokenizers; knows no engine.

    prompts = render_requests(tokenizer, requests, context_length(folder))
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.errors import BadInput
from posttrain.generation import Request
from posttrain.models.chat import TERMINATION, decode_response, render_prompt

AllowedTokens = dict[tuple[int, ...], set[int]]
"""Tokens so far → tokens that may follow."""


def render_requests(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], context: int
) -> list[list[int]]:
    """Prompt token ids, one list a request.

    Raises:
        BadInput: a prompt leaves no room for max_tokens, naming the request.
    """
    prompts = []
    for request in requests:
        ids = render_prompt(tokenizer, request.messages, request.tools)
        if len(ids) + request.max_tokens > context:
            raise BadInput(
                f"request {request.id}: {len(ids)} prompt tokens and max_tokens "
                f"{request.max_tokens} exceed the model's context of {context} tokens; "
                "shorten the prompt or lower max_tokens"
            )
        prompts.append(ids)
    return prompts


def cut_text(text: str, stop: Sequence[str]) -> str:
    """Text before the first of the stop texts."""
    found = [place for place in (text.find(s) for s in stop) if place >= 0]
    return text[: min(found)] if found else text


def response_text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str]
) -> str:
    """The text of a response without its end token and from its stop text on."""
    return cut_text(decode_response(tokenizer, ids), stop)


def ends_in_stop(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str]
) -> bool:
    """Whether the last token completed a stop text."""
    # A token holds at least one byte, so no stop text reaches back further than this.
    window = max(len(s.encode()) for s in stop) + 4
    tail = tokenizer.decode(list(ids[-window:]), clean_up_tokenization_spaces=False)
    return any(s in str(tail) for s in stop)


def allowed_tokens(tokenizer: PreTrainedTokenizerBase, request: Request) -> AllowedTokens:
    """The prefix tree of a request's choices, each closed by the token that ends a turn.

    Raises:
        BadInput: max_tokens would cut a choice.
    """
    known = tokenizer.get_vocab()
    named = [known[token] for token in TERMINATION if token in known]
    end = named[0] if named else int(tokenizer.eos_token_id)
    tree: AllowedTokens = {}
    for choice in request.choices:
        ids = (*tokenizer.encode(choice, add_special_tokens=False), end)
        if len(ids) > request.max_tokens:
            raise BadInput(
                f"request {request.id}: the choice {choice!r} takes {len(ids)} tokens with its "
                f"end, more than max_tokens {request.max_tokens}"
            )
        for place, token in enumerate(ids):
            tree.setdefault(ids[:place], set()).add(token)
    return tree
