"""What goes into curation, what comes out, and what a cleaning rule answers.

Knows no step. Rows come in as `Scored`, travel between steps as `Row`, and end in `Curated`,
either among the kept examples or among the dropped ones.

    Scored(example, score=1.7, grade=Grade(3, 3), prompt=prompt, human=False)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from posttrain.embedding import Embedded
from posttrain.hooks import Grade
from posttrain.rows import Example, Prompt, content_id


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


def map_assistant(row: Example, change: Callable[[str], str]) -> Example:
    """The row with `change` applied to the text of every assistant turn; the same row if equal."""
    messages = tuple(
        m.model_copy(update={"content": change(m.content)}) if m.role == "assistant" else m
        for m in row.messages
    )
    return row if messages == row.messages else row.model_copy(update={"messages": messages})


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


@dataclass(frozen=True)
class CurationTools:
    """What the steps need beside the rows and the settings."""

    rules: Mapping[str, Rule]
    """Functions of `data_quality/rules.py` by name."""
    heldout: Sequence[Prompt]
    """Every dev and test prompt."""
    shares: Mapping[str, float]
    """Wanted mix: capability → share of the examples."""
    embed: Callable[[Sequence[str]], Embedded] | None = None
    """Needed by semantic_dedup alone."""
    earlier: Sequence[Example] = ()
    """Rows kept in earlier rounds; a row that equals one of them is a duplicate."""
    seed: int = 0
    """Breaks ties between rows that are equal in every signal."""


class Row(NamedTuple):
    """A row between two steps, with what the steps have found so far."""

    example: Example
    score: float | None
    grade: Grade | None
    prompt: Prompt | None
    human: bool
    tie_break: str
    quality: int | None = None
    """How many of the two signals call it best, 0 to 2; None before the quality step."""
    difficulty: int | None = None
    """1 easy to 3 hard; None before the difficulty step."""
    decisions: tuple[str, ...] = ()

    @classmethod
    def of(cls, scored: Scored, seed: int) -> Self:
        """A row that no step has seen."""
        return cls(*scored, tie_break=content_id([seed, scored.example.id]))

    def decide(self, step: str, text: str) -> Self:
        """The row with one more decision on record."""
        return self._replace(decisions=(*self.decisions, f"{step}: {text}"))

    def rank(self) -> tuple[bool, int, float, int, str]:
        """Sort key, best first: human, quality x difficulty, score, difficulty, hash."""
        quality = 1 if self.quality is None else self.quality
        difficulty = 1 if self.difficulty is None else self.difficulty
        score = float("-inf") if self.score is None else self.score
        return (not self.human, -quality * difficulty, -score, -difficulty, self.tie_break)

    def result(self) -> Example:
        """The example with its `score`, `grade`, `quality`, `difficulty` and `decisions`."""
        extra: dict[str, Any] = {"decisions": list(self.decisions)}
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

    id: str
    step: str
    reason: str
    """Short and countable, e.g. `near duplicate`."""
    extra: Mapping[str, Any]
    """Evidence, e.g. `{"keeper": id, "cosine": 0.97}`."""
    example: Example
    """The row as the step found it, with its decisions so far."""


def drop(row: Row, step: str, reason: str, **extra: Any) -> Dropped:
    """The record of a row's end."""
    return Dropped(row.example.id, step, reason, extra, row.result())


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


@dataclass(frozen=True)
class Curated:
    """The result: every row that came in is either kept or dropped."""

    kept: tuple[Example, ...]
    """Sorted by id."""
    dropped: tuple[Dropped, ...]
    """In the order of the steps, then by id."""
    counts: tuple[StepCount, ...]
    mix: Mapping[str, MixShare]
    """Wanted beside achieved; a capability without rows has 0 rows."""
