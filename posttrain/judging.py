"""Judges: who grades a response on a rubric, and how a rubric becomes a question.

Knows grades and rubric templates; knows no engine. A response that a judge gives no grade is
*unscored*: None, never a default.

    SimulatedJudge(Path("rounds/tiny/judge.py"), load_functions).grade(candidate, prompt, True)
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from posttrain.errors import BadInput
from posttrain.hooks import Grade
from posttrain.rows import Candidate, Prompt

SIMULATED_MAXIMUM = 3


class Judge(Protocol):
    """Grades one response a call."""

    label: str
    """What stands beside its grades in a report."""

    def grade(self, candidate: Candidate, prompt: Prompt, passed: bool) -> Grade | None:
        """The grade, or None where the judge gives none."""
        ...


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

    def grade(self, candidate: Candidate, prompt: Prompt, passed: bool) -> Grade | None:
        """The rules' grade on a scale of three.

        Raises:
            BadInput: the rules answer something else than 1, 2, 3 or None.
        """
        score = self._grade(prompt, candidate.response, passed)
        if score is None:
            return None
        if isinstance(score, bool) or score not in range(1, SIMULATED_MAXIMUM + 1):
            raise BadInput(
                f"{self.rules}: grade answered {score!r} for {candidate.id}, "
                f"expected 1 to {SIMULATED_MAXIMUM}, or None"
            )
        return Grade(int(score), SIMULATED_MAXIMUM, self.label)


class Rubric(NamedTuple):
    """A question to a judge and the grades it may answer with."""

    text: str
    scale: tuple[int, ...]
    """Lowest first; the last is the maximum."""


def render_rubric(template: Path, variables: Mapping[str, Any]) -> Rubric:
    """Fill in a rubric, a Jinja file that sets `scale` and names its variables.

    Raises:
        BadInput: the template is wrong, a variable is missing, or `scale` is no ascending list of
            whole numbers.
    """
    # Autoescape stays off: the text goes to a model, where `&lt;` would be noise.
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        module = environment.from_string(template.read_text()).make_module(dict(variables))
    except (OSError, TemplateError) as error:
        raise BadInput(f"{template}: the rubric cannot be filled in ({error})") from error
    scale = vars(module).get("scale")
    if (
        not isinstance(scale, list | tuple)
        or not all(type(grade) is int for grade in scale)
        or len(scale) < 2
        or sorted(set(scale)) != list(scale)
    ):
        raise BadInput(
            f"{template}: expected {{% set scale = [1, 2, 3] %}} or the like, found {scale!r}"
        )
    return Rubric(str(module).strip(), tuple(scale))
