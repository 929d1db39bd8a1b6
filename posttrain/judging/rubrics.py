"""Rubrics: a Jinja file becomes a question to a judge and the grades it may answer with.

render_rubric(Path("data_quality/rubrics/general.jinja"), {"dialog": [...], "response": "…"})
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from posttrain.errors import BadInput


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
