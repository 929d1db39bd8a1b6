"""Raw text as packed rows of tokens: documents blind to each other, sources in their shares.

Knows tokens, shares and rows. Knows no trainer. Nothing is cut off: a document that is longer than
a row goes on in another one, which does not see its beginning.

    rows, dropped = text_tokens(tokenizer, 2, documents, settings, max_length=4096)
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from posttrain.errors import BadInput
from posttrain.likelihood import IGNORED
from posttrain.rows import Document, stable_seed
from posttrain.settings.pretraining import PretrainSettings
from posttrain.shares import target_sizes
from posttrain.training.job import Dropped
from posttrain.training.packing import best_fit
from posttrain.training.tokens import ROWS, TokenRow, Tokens

Ids = NDArray[np.int32]


class Piece(NamedTuple):
    """A document or a part of one, as it stands in a row."""

    place: int
    """Of the document."""
    ids: Ids


def text_tokens(
    tokenizer: PreTrainedTokenizerBase,
    end: int,
    documents: Sequence[Document],
    settings: PretrainSettings,
    max_length: int,
) -> Tokens:
    """`input_ids`, `labels` and `position_ids` of rows with `max_length` tokens at most.

    Args:
        tokenizer: Of the base.
        end: Id of the token that ends a document.
        documents: Of all sources.
        settings: Wanted shares of the sources, by tokens.
        max_length: Tokens of a row.

    Raises:
        BadInput: a source has no documents.
    """
    encoded = [_encoded(tokenizer, one.text, end) for one in documents]
    drawn, dropped = _drawn(documents, [len(one) for one in encoded], settings)
    pieces = [Piece(place, part) for place in drawn for part in _parts(encoded[place], max_length)]
    rows = best_fit([len(one.ids) for one in pieces], max_length)
    return [_row([pieces[number] for number in row]) for row in rows], dropped


def tokens_by_source(
    rows: Sequence[Mapping[str, Any]], documents: Sequence[Document]
) -> dict[str, int]:
    """Tokens that the rows hold of each source."""
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        starts = np.flatnonzero(row["position_ids"] == 0)
        lengths = np.diff([*starts, len(row["position_ids"])])
        for place, length in zip(row[ROWS], lengths, strict=True):
            found[documents[place].source] += int(length)
    return dict(sorted(found.items()))


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, end: int) -> Ids:
    start = tokenizer.bos_token_id
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.asarray([*([] if start is None else [start]), *ids, end], dtype=np.int32)


def _drawn(
    documents: Sequence[Document], lengths: Sequence[int], settings: PretrainSettings
) -> tuple[list[int], list[Dropped]]:
    """Places of the documents, each as often as it is read, and those that never are."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(documents):
        by_source[one.source].append(place)
    missing = sorted(set(settings.sources) - set(by_source))
    if missing:
        raise BadInput(f"sources.{missing[0]}: no document is left to train on")
    sizes = {name: sum(lengths[one] for one in places) for name, places in by_source.items()}
    shares = {name: source.share for name, source in settings.sources.items()}
    wanted = target_sizes(sizes, shares, settings.max_repeat)
    drawn: list[int] = []
    dropped: list[Dropped] = []
    for name, places in sorted(by_source.items()):
        whole, rest = divmod(wanted[name], sizes[name])
        drawn += places * whole
        # Which documents are read once more than the others: any, but always the same ones.
        for place in sorted(places, key=lambda one: _order(settings, documents[one])):
            if rest > 0:
                drawn.append(place)
                rest -= lengths[place]
            elif not whole:
                dropped.append((documents[place].id, f"over share: {name}"))
    return drawn, dropped


def _order(settings: PretrainSettings, document: Document) -> tuple[int, str]:
    return stable_seed("order of documents", settings.data_seed, document.id), document.id


def _parts(ids: Ids, max_length: int) -> Iterator[Ids]:
    """A document in as few parts as fit, of about the same length."""
    yield from np.array_split(ids, -(-len(ids) // max_length))


def _row(pieces: Sequence[Piece]) -> TokenRow:
    labels = [np.concatenate([[IGNORED], one.ids[1:]]) for one in pieces]
    positions = [np.arange(len(one.ids)) for one in pieces]
    return {
        "input_ids": np.concatenate([one.ids for one in pieces]),
        "labels": np.concatenate(labels).astype(np.int32),
        "position_ids": np.concatenate(positions).astype(np.int32),
        ROWS: np.asarray([one.place for one in pieces], dtype=np.int32),
    }
