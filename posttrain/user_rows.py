"""Rows of a user's file: prompts, dialogs to curate, and texts to compare, read a row at a time.

Knows the lines of a file and the columns that are looked at; all others stay as they are. Where
texts are compared, a row is named by its place in the file, malformed rows counted.

    found = TextRows(Path("rows.jsonl"))
    for row, line in found.read():
        …
    found.text(found.order()[0])
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.dedup.equal import messages_hash, plain_text
from posttrain.embedding import dialog_text
from posttrain.hooks import Grade
from posttrain.rows import Example, Messages, Prompt, content_id
from posttrain.tables import Reject, excerpt, json_file_lines, parse_row

LABELS = ("source", "capability", "topic")
"""Columns by whose values losses are told."""


class PromptRow(Prompt):
    """A prompt to sample; a text is one user message. Other columns are not looked at.

    A row without an id gets the one that a round would give it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    capability: str = ""

    @model_validator(mode="before")
    @classmethod
    def _columns(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        row = dict(with_text_id(data))
        if isinstance(row.get("prompt"), str):
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        if not row.get("id"):
            try:
                row["id"] = content_id({k: v for k, v in row.items() if k != "id"})
            except TypeError as error:
                raise ValueError(f"a row without an id must be plain JSON ({error})") from error
        kept = ("id", "prompt", "tools", "capability")
        return {key: row[key] for key in kept if row.get(key) is not None}


class ScoredDialog(Example):
    """A dialog to curate, with what is known of its quality."""

    capability: str = "general"
    score: float | None = None
    """A reward model's."""
    grade: Grade | None = None
    """A judge's score and its scale's maximum."""
    human: bool = False
    """Written by a person."""
    level: Annotated[int, Field(ge=1)] | None = None
    tags: tuple[str, ...] = ()
    """Intentions of its prompt (InsTag)."""

    @model_validator(mode="before")
    @classmethod
    def _text_id(cls, data: Any) -> Any:
        return with_text_id(data)


class TextRow(BaseModel):
    """A row to compare: a dialog, or a text. Other columns are not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = ""
    messages: Messages = ()
    text: str = ""
    quality: float | None = None
    difficulty: float | None = None
    score: float | None = None
    source: Any = None
    capability: Any = None
    topic: Any = None

    @model_validator(mode="before")
    @classmethod
    def _text_id(cls, data: Any) -> Any:
        return with_text_id(data)

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if not self.whole_text.strip():
            raise ValueError("expected messages or a text, and one that is not empty")
        return self

    @property
    def hash(self) -> bytes:
        """The same of equal texts."""
        whole = messages_hash(self.messages) if self.messages else content_id(plain_text(self.text))
        return bytes.fromhex(whole)

    @property
    def whole_text(self) -> str:
        """What is compared: every turn but system prompts, or the text."""
        return dialog_text(self.messages) if self.messages else self.text


class Rank(NamedTuple):
    """Sort key, best first; rows without signals stay in the file's order."""

    product: float
    score: float
    difficulty: float
    tie: str

    @classmethod
    def of(cls, row: TextRow, own_id: str) -> Self | None:
        signals = (row.quality, row.difficulty, row.score)
        if all(signal is None for signal in signals):
            return None
        quality, difficulty = (1.0 if s is None else s for s in signals[:2])
        score = float("-inf") if row.score is None else row.score
        return cls(-quality * difficulty, -score, -difficulty, content_id(own_id))


RowT = TypeVar("RowT", ScoredDialog, TextRow)


@dataclass
class TextRows:
    """What is known of each row; a row is named by its place in the file, rejects counted."""

    path: Path
    """Lines of JSON, in the file's order."""
    ids: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    ranks: list[Rank | None] = field(default_factory=list)
    labels: list[tuple[str | None, ...]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    good: list[int] = field(default_factory=list)
    """Rows that are no rejects."""

    def read(self) -> Iterator[TextRow]:
        """Look at every row once, and remember all but its text.

        Raises:
            BadInput: no such file, or one of another format.
        """
        for offset, raw, row in parsed_lines(self.path, TextRow):
            self.offsets.append(offset)
            if isinstance(row, Reject):
                self.rejects.append(row)
                self._append("", b"", None, ())
                continue
            self.good.append(len(self.ids))
            own_id = row.id or content_id(raw.decode().strip())
            values = (row.source, row.capability, row.topic)
            labels = tuple(v if isinstance(v, str) else None for v in values)
            self._append(own_id, row.hash, Rank.of(row, own_id), labels)
            yield row

    def _append(
        self, own_id: str, text_hash: bytes, rank: Rank | None, labels: tuple[str | None, ...]
    ) -> None:
        self.ids.append(own_id)
        self.hashes.append(text_hash)
        self.ranks.append(rank)
        self.labels.append(labels)

    def order(self) -> list[int]:
        """Good rows, best first."""
        last = Rank(float("inf"), float("inf"), float("inf"), "")
        if all(rank is None for rank in self.ranks):
            return self.good
        return sorted(self.good, key=lambda row: (self.ranks[row] or last, row))

    def line(self, row: int) -> bytes:
        """A row as it stands in the file."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[row])
            return file.readline()

    def text(self, row: int) -> str:
        """What of a row is compared."""
        return TextRow.model_validate_json(self.line(row)).whole_text


def with_text_id(data: Any) -> Any:
    """A row whose id is a text where it was a number."""
    if isinstance(data, Mapping) and isinstance(data.get("id"), int):
        return {**data, "id": str(data["id"])}
    return data


def parsed_lines(path: Path, kind: type[RowT]) -> Iterator[tuple[int, bytes, RowT | Reject]]:
    """Byte offset and content of each line, and the row that stands there.

    Raises:
        BadInput: no such file, or one of another format.
    """
    known: dict[str, int] = {}
    for offset, number, raw in json_file_lines(path):
        row = parse_row(raw, kind)
        own_id = "" if isinstance(row, str) else row.id
        # An id made from the content is the same in equal rows: duplicates, and no mistake.
        if own_id in known and json.loads(raw).get("id"):
            row = f"id {own_id} was already used in line {known[own_id]}"
        if isinstance(row, str):
            yield offset, raw, Reject(path.name, number, row, excerpt(raw))
            continue
        if own_id:
            known[own_id] = number
        yield offset, raw, row
