"""A judge as annotator: two responses compared in both orders, on the scale that people use.

Knows the pairwise rubric, whose grades run from 1 (the first is significantly better) over 5 (a
tie) to 9, and what two verdicts make together. Who answers, `askers` knows.

    ModelComparer(asker, Path("data_quality/rubrics/pair.jinja"), "judge m").compare(tasks)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from posttrain.errors import BadInput
from posttrain.hooks import Grade
from posttrain.judging.askers import Asker, Question
from posttrain.judging.contract import Judged
from posttrain.judging.model import read_grade
from posttrain.judging.rubrics import render_rubric
from posttrain.judging.simulated import SimulatedJudge
from posttrain.judgments.simulated import Verify, as_candidate, task_prompt
from posttrain.rows import Judgment, Messages, Strength, Task

TIE = 5
SCALE = tuple(range(1, 2 * TIE))


class Verdicts(NamedTuple):
    """What a judge said of a task: with response a first, and with b first; None: nothing."""

    forward: int | None
    backward: int | None


class Comparer(Protocol):
    """Compares the two responses of tasks."""

    label: str
    """The annotator that its judgments name."""

    def compare(self, tasks: Sequence[Task]) -> list[Verdicts]:
        """Verdicts on each task, in order.

        Raises:
            BadInput: the judge cannot be asked.
            StepFailed: it stopped answering.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class ModelComparer:
    """Asks a model about each task, twice."""

    def __init__(self, asker: Asker, rubric: Path, label: str) -> None:
        """Asks nothing yet."""
        self.label = label
        self._asker, self._rubric = asker, rubric

    def compare(self, tasks: Sequence[Task]) -> list[Verdicts]:
        """Two verdicts a task.

        Raises:
            BadInput: the rubric cannot be filled in, or its scale is not 1 to 9.
            StepFailed: the model stopped answering.
        """
        orders = [
            (task, *sides) for task in tasks for sides in ((task.a, task.b), (task.b, task.a))
        ]
        answers = self._asker.ask([self._question(*one) for one in orders])
        grades = [read_grade(answer, SCALE) for answer in answers]
        return [Verdicts(*pair) for pair in zip(grades[::2], grades[1::2], strict=True)]

    def close(self) -> None:
        """Let the model go."""
        self._asker.close()

    def _question(self, task: Task, first: Messages, second: Messages) -> Question:
        variables = {
            "dialog": [turn.to_json() for turn in task.prompt],
            "first": first[-1].content,
            "second": second[-1].content,
        }
        filled = render_rubric(self._rubric, variables)
        if filled.scale != SCALE:
            raise BadInput(f"{self._rubric}: a rubric for pairs has the scale 1 to {SCALE[-1]}")
        return Question(filled.text, tuple(str(grade) for grade in SCALE))


class SimulatedComparer:
    """The simulated judge: the difference of its grades of the two responses."""

    def __init__(self, judge: SimulatedJudge, verify: Verify) -> None:
        """Takes the judge, and what knows whether responses pass."""
        self.label = judge.label
        self._judge, self._verify = judge, verify

    def compare(self, tasks: Sequence[Task]) -> list[Verdicts]:
        """The same in both orders; None where the rules grade one of the responses not at all."""
        pairs = [(as_candidate(t, side), task_prompt(t)) for t in tasks for side in ("a", "b")]
        rows = [Judged(*pair, ok) for pair, ok in zip(pairs, self._verify(pairs), strict=True)]
        grades = [opinion.grade for opinion in self._judge.grade(rows)]
        return [_by_grades(a, b) for a, b in zip(grades[::2], grades[1::2], strict=True)]

    def close(self) -> None:
        """Nothing to give back."""


def _by_grades(a: Grade | None, b: Grade | None) -> Verdicts:
    if a is None or b is None:
        return Verdicts(None, None)
    # The largest difference of grades is `significantly better`, one step less `better`.
    gap = b.score - a.score
    strength = 0 if not gap else len(Strength) - (a.maximum - 1 - abs(gap))
    verdict = TIE + (strength if gap > 0 else -strength)
    return Verdicts(verdict, 2 * TIE - verdict)


def judgment_of(task: Task, verdicts: Verdicts, label: str) -> Judgment | None:
    """The judgment that two verdicts make; None where one of them is missing.

    A verdict that flips with the order is a tie, and so is one that is a tie in either order; the
    strength is the weaker of the two.
    """
    if verdicts.forward is None or verdicts.backward is None:
        return None
    # Both as if a stood first.
    one, other = verdicts.forward - TIE, TIE - verdicts.backward
    base = {
        "id": f"{task.id}/{label}",
        "parents": (task.id,),
        "task": task.id,
        "annotator": label,
        "verdicts": list(verdicts),
    }
    if one * other <= 0:
        return Judgment.model_validate({**base, "choice": "tie"})
    level = min(abs(one), abs(other)) - 1
    choice = "b" if one > 0 else "a"
    return Judgment.model_validate({**base, "choice": choice, "strength": list(Strength)[level]})
