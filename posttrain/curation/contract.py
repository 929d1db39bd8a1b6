"""What goes into curation, what comes out, and what a cleaning rule answers.

Knows no step. Rows come in as `Scored`, travel between steps as `Row`, and end in `Curated`,
either among the kept examples or among the dropped ones. A row between two steps holds no text:
that lies in a file, and is read where it is needed.

    Scored(example, score=1.7, grade=Grade(3, 3), prompt=prompt, human=False)
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar, overload

from posttrain.embedding import Embedded
from posttrain.hooks import Grade
from posttrain.rows import Example, Prompt


@dataclass(frozen=True)
class Drop:
    """A rule's answer for a row that must go; the reason becomes a counter, so keep it short."""

    reason: str


class Rule(Protocol):
    """A cleaning rule: the same row keeps it, a changed row modifies it, a `Drop` removes it.

    A rule changes assistant turns only, keeps the row's id, and gives the same answer each time.
    """

    def __call__(self, row: Example, /) -> Example | Drop:
        """The row, a changed row, or why it goes."""
        ...


class Table(Protocol):
    """A filter that needs all rows: for each, in their order, what a `Rule` answers."""

    def __call__(self, rows: Sequence[Example], /) -> Iterable[Example | Drop]:
        """The rows are read from disk as they are asked for."""
        ...


TableT = TypeVar("TableT", bound=Table)


def table(function: TableT) -> TableT:
    """Mark a filter as one that is called once, with all rows."""
    function.takes_all_rows = True  # type: ignore[attr-defined]
    return function


def map_assistant(row: Example, change: Callable[[str], str]) -> Example:
    """The row with `change` applied to the text of every assistant turn; the same row if equal."""
    messages = list(row.messages)
    for place, message in enumerate(row.messages):
        if message.role == "assistant":
            content = change(message.content)
            if content != message.content:
                messages[place] = message.model_copy(update={"content": content})
    same = all(map(is_, messages, row.messages))
    return row if same else row.model_copy(update={"messages": tuple(messages)})


class Scored(NamedTuple):
    """An example with all that is known of its quality."""

    example: Example
    score: float | None = None
    """Reward model's score; None where none was given."""
    grade: Grade | None = None
    """Judge's grade; None is unscored."""
    prompt: Prompt | None = None
    """Where it came from; its level tells the difficulty."""
    human: bool = False
    """Written by a person: never dropped for its quality, and first in every comparison."""
    earlier: bool = False
    """Chosen in an earlier round."""


@dataclass(frozen=True)
class CurationTools:
    """What the steps need beside the rows and the settings."""

    rules: Mapping[str, Rule]
    """Functions of `data_quality/rules.py` by name."""
    heldout: Sequence[Prompt]
    """Every dev and test prompt."""
    shares: Mapping[str, float]
    """Wanted mix: capability → share of the examples; without any, all rows stay as they are."""
    sub_mixes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Capability → weights of where its rows come from (`human`, or how a row's source begins)."""
    embed: Callable[[Sequence[str]], Embedded] | None = None
    """Needed by semantic_dedup and topics."""
    topics: Path | None = None
    """`data_quality/topics.yaml`, needed by topics."""
    filters: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """The pipeline's own filters by name."""
    seed: int = 0
    """Breaks ties between rows that are equal in every signal."""
    work: Path | None = None
    """Folder for texts while they are not looked at; None is the system's."""


class Store:
    """Examples in a file that no one else sees, and that is gone with this object."""

    def __init__(self, folder: Path | None) -> None:
        """An empty store in a folder, None for the system's."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def add(self, example: bytes) -> int:
        """Where an example, as JSON, lies from now on."""
        at = self._file.seek(0, os.SEEK_END)
        self._file.write(example + b"\n")
        return at

    def read(self, at: int) -> Example:
        """The example that lies there."""
        self._file.seek(at)
        return Example.model_validate_json(self._file.readline())


class Hit(NamedTuple):
    """A held-out prompt found in a dialog."""

    reason: str
    heldout: str
    """Id of the held-out prompt."""
    share: float
    """Share of its n-grams that were found; 1 for the whole prompt."""


class Row(NamedTuple):
    """A row between two steps, with what the steps have found so far."""

    store: Store
    at: int
    """Where in the store its example lies."""
    number: int
    """Its place among the rows that came in."""
    id: str
    capability: str
    source: str
    score: float | None
    grade: Grade | None
    human: bool
    earlier: bool
    level: int | None
    pass_rate: Any
    judged: Any
    """The judge's difficulty, 1 to 3."""
    tags: tuple[str, ...]
    """The prompt's intentions, as the judge named them."""
    content: str
    """Hash of all that came in: sorted by id and this, the input's order leaves no trace."""
    dialog: str
    """`posttrain.dedup.dialog_hash`."""
    tie_break: str
    edits: tuple[str, ...] = ()
    """Cleaning rules that changed it."""
    unclean: str = ""
    """Why cleaning drops it, if it does."""
    hit: Hit | None = None
    phrases: tuple[str, ...] = ()
    """Families of overused phrases that an answer of it holds."""
    opening: str = ""
    """The first words of its last answer."""
    quality: int | None = None
    """How many of the two signals call it best, 0 to 2; None before the quality step."""
    difficulty: int | None = None
    """1 easy to 3 hard; None before the difficulty step."""
    topic: tuple[str, str] | None = None
    """Coarse and fine; None before the topics step."""
    repeat: int = 1
    decisions: tuple[str, ...] = ()

    @property
    def example(self) -> Example:
        """Its example, read from the store."""
        return self.store.read(self.at)

    def decide(self, step: str, text: str) -> Self:
        """The row with one more decision on record."""
        # Few different texts, each held once. The decisions stand last in the tuple.
        return type(self)._make((*self[:-1], (*self.decisions, sys.intern(f"{step}: {text}"))))

    def rank(self) -> tuple[bool, int, float, int, str]:
        """Sort key, best first: human, quality x difficulty, score, difficulty, hash."""
        quality = 1 if self.quality is None else self.quality
        difficulty = 1 if self.difficulty is None else self.difficulty
        score = float("-inf") if self.score is None else self.score
        return (not self.human, -quality * difficulty, -score, -difficulty, self.tie_break)

    def result(self) -> Example:
        """The example with its `score`, `grade`, `quality`, `difficulty` and `decisions`."""
        extra: dict[str, Any] = {"decisions": list(self.decisions)}
        if self.edits:
            extra["edits"] = self.edits
        if self.topic is not None:
            extra["topic"] = list(self.topic)
        if self.repeat > 1:
            extra["repeat"] = self.repeat
        if self.score is not None:
            extra["score"] = self.score
        if self.grade is not None:
            extra["grade"] = {"score": self.grade.score, "maximum": self.grade.maximum}
        if self.quality is not None:
            extra["quality"] = self.quality
        if self.difficulty is not None:
            extra["difficulty"] = self.difficulty
        return self.example.model_copy(update=extra)


class Dropped(NamedTuple):
    """A row that went, and why."""

    row: Row
    """As the step found it, with its decisions so far."""
    step: str
    reason: str
    """Short and countable, e.g. `near duplicate`."""
    extra: Mapping[str, Any]
    """Evidence, e.g. `{"keeper": id, "cosine": 0.97}`."""

    @property
    def id(self) -> str:
        """The row's id."""
        return self.row.id


def drop(row: Row, step: str, reason: str, **extra: Any) -> Dropped:
    """The record of a row's end."""
    return Dropped(row, step, reason, extra)


class StepResult(NamedTuple):
    """What one step made of the rows it got."""

    kept: list[Row]
    dropped: list[Dropped]
    modified: Mapping[str, int] = {}
    notes: Mapping[str, Any] = {}


@dataclass(frozen=True)
class StepCount:
    """A step in numbers."""

    step: str
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    """Reason → rows."""
    modified: Mapping[str, int]
    """Cleaning rule → rows it changed."""
    notes: Mapping[str, Any]
    """What else the step measured, ready for JSON."""


class MixShare(NamedTuple):
    """One capability of the mix."""

    wanted: float
    achieved: float
    """Share of all examples, repeats counted."""
    rows: int
    examples: int
    """Rows with their repeats."""


class Examples(Sequence[Example]):
    """The examples of rows, each read when it is asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Reads nothing yet."""
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        if isinstance(place, slice):
            return Examples(self.rows[place])
        return self.rows[place].result()


@dataclass(frozen=True)
class Curated:
    """The result: every row that came in is either kept or dropped."""

    kept: Examples
    """Sorted by id."""
    dropped: tuple[Dropped, ...]
    """In the order of the steps, then by id."""
    counts: tuple[StepCount, ...]
    mix: Mapping[str, MixShare]
    """Wanted beside achieved; a capability without rows has 0 rows."""
