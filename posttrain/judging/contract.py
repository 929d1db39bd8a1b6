"""What is judged, and what a judge says of it; the same for every judge.

judge.grade([Judged(candidate, prompt, passed=True)])
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from posttrain.hooks import Grade
from posttrain.rows import Candidate, Prompt


class Judged(NamedTuple):
    """A response to grade."""

    candidate: Candidate
    prompt: Prompt
    passed: bool
    """Whether no verifier rejected it."""


class Opinion(NamedTuple):
    """What a judge says of one response; None is what it did not say."""

    grade: Grade | None = None
    difficulty: int | None = None
    """How hard the prompt is: 1 easy, 2 medium, 3 hard."""
    tags: tuple[str, ...] | None = None
    """Intentions of the prompt (InsTag, arXiv 2308.07074), not yet normalized."""


class Judge(Protocol):
    """Grades responses."""

    label: str
    """What stands beside its grades in a report."""

    def grade(self, rows: Sequence[Judged]) -> list[Opinion]:
        """An opinion on each response, in order.

        Raises:
            BadInput: the judge cannot be asked.
            StepFailed: it stopped answering.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
