"""Equal dialogs, by hash.

Knows what of a text makes no difference.

    exact_duplicates([example, other])
"""

import hashlib
import unicodedata
from collections.abc import Sequence

from posttrain.dedup.contract import Removal
from posttrain.rows import ID_HEX_DIGITS, Example, Message, canonical_json

UNTIDY = (" \n", "\t\n", *"\r\v\f\x1c\x1d\x1e\x1f")
"""An ASCII text without these has no white space at its lines' ends, and no odd line ends."""


def dialog_hash(example: Example) -> str:
    """Identity of a dialog: every turn, less Unicode form, line-end white space and outer blanks.

    Indentation stays: two programs that differ in it are two programs.
    """
    return messages_hash(example.messages)


def messages_hash(messages: Sequence[Message]) -> str:
    """`dialog_hash` of turns."""
    whole = hashlib.sha256()
    for message in messages:
        calls = canonical_json(message.tool_calls).encode() if message.tool_calls else b""
        text = plain_text(message.content).encode()
        whole.update(f"{message.role} {len(text)} {len(calls)}\n".encode())
        whole.update(text)
        whole.update(calls)
    return whole.hexdigest()[:ID_HEX_DIGITS]


def plain_text(text: str) -> str:
    """A text less its Unicode form, line-end white space and outer blank lines."""
    if text.isascii() and not any(mark in text for mark in UNTIDY):
        return text.rstrip().lstrip("\n")
    lines = unicodedata.normalize("NFC", text).splitlines()
    return "\n".join([line.rstrip() for line in lines]).strip("\n")


def exact_duplicates(examples: Sequence[Example], earlier: Sequence[Example] = ()) -> list[Removal]:
    """Every example whose dialog an earlier row or an example before it holds already.

    Args:
        examples: best first.
        earlier: rows that examples must not repeat; keeper N + e names one.
    """
    return equal_rows([dialog_hash(one) for one in examples], [dialog_hash(e) for e in earlier])


def equal_rows(hashes: Sequence[str | bytes], earlier: Sequence[str | bytes] = ()) -> list[Removal]:
    """`exact_duplicates` of rows whose hashes are known."""
    first: dict[str | bytes, int] = {}
    for place, known in enumerate(earlier):
        first.setdefault(known, len(hashes) + place)
    removals = []
    for index, own in enumerate(hashes):
        keeper = first.setdefault(own, index)
        if keeper != index:
            removals.append(Removal(index, keeper, 1.0))
    return removals
