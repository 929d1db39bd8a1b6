"""A judge made of rules, for tests and the tiny plan.

SimulatedJudge(Path("rounds/tiny/people.py"), load_functions).grade(rows)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput
from posttrain.hooks import Grade
from posttrain.judging.contract import Judged, Opinion

SIMULATED_MAXIMUM = 3


class SimulatedJudge:
    """A judge made of rules, for tests and the tiny plan; labelled wherever its grades show."""

    label = "simulated judge"

    def __init__(
        self, rules: Path, load: Callable[[Path], Mapping[str, Callable[..., Any]]]
    ) -> None:
        """Loads the rules.

        Args:
            rules: a Python file with `grade(prompt, response, passed)`, which answers 1, 2, 3 or
                None.
            load: reads a Python file's functions by name.

        Raises:
            BadInput: the file has no function `grade`.
        """
        functions = load(rules)
        if "grade" not in functions:
            raise BadInput(
                f"{rules}: expected a function grade(prompt, response, passed), "
                f"found {sorted(functions)}"
            )
        self.rules = rules
        self._grade = functions["grade"]

    def grade(self, rows: Sequence[Judged]) -> list[Opinion]:
        """The rules' grades on a scale of three.

        Raises:
            BadInput: the rules answer something else than 1, 2, 3 or None.
        """
        return [Opinion(self._one(row)) for row in rows]

    def close(self) -> None:
        """Nothing to give back."""

    def _one(self, row: Judged) -> Grade | None:
        score = self._grade(row.prompt, row.candidate.response, row.passed)
        if score is None:
            return None
        if isinstance(score, bool) or score not in range(1, SIMULATED_MAXIMUM + 1):
            raise BadInput(
                f"{self.rules}: grade answered {score!r} for {row.candidate.id}, "
                f"expected 1 to {SIMULATED_MAXIMUM}, or None"
            )
        return Grade(int(score), SIMULATED_MAXIMUM, self.label)
