"""What `posttrain recipes test` can be told. Loads little; `posttrain.recipe_trial` does the work.

TrialSettings(model=Path("models/base"), num=4)
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from posttrain.settings.base import Settings
from posttrain.settings.judges import Judge, NoJudge
from posttrain.settings.plan import Sampling


class TrialSettings(Settings):
    """A recipe on a handful of prompts."""

    model: Path | None = None
    """Folder of the model that answers."""
    transcript: Path | None = None
    """With a model: where its answers are recorded; without: where they are read."""
    prompts: Path | None = None
    """File of prompts; None asks the recipe's own hook."""
    num: Annotated[int, Field(ge=1, le=64)] = 4
    """Prompts."""
    k: Annotated[int, Field(ge=1, le=16)] = 2
    """Responses to each, where the recipe samples any."""
    seed: Annotated[int, Field(ge=0)] = 0
    options: dict[str, Any] = {}
    """Of the `prompts` hook."""
    overrides: dict[str, Any] = {}
    """Of recipe.yaml."""
    sampling: Sampling = Sampling()
    judge: Judge = NoJudge()

    @model_validator(mode="after")
    def _somebody_answers(self) -> Self:
        if self.model is None and (self.transcript is None or not self.transcript.is_file()):
            raise ValueError("expected --model DIR, or --transcript FILE of an earlier trial")
        return self
