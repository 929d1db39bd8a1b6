"""Settings of an expert branch: continued pre-training on raw text, then a policy made of it.

Defaults are the paper's where it names a value (section 4.3.1) and ours elsewhere.

    Expert.model_validate({"sources": {"code": {"files": ["data/code.jsonl"], "share": 0.85}, …}})
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from posttrain.settings.base import Settings
from posttrain.settings.training import TrainingSettings


class TextSource(Settings):
    """Raw text of one kind."""

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """.jsonl or .parquet files in the workspace; a row is `{"text": …}`."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Of the tokens; the shares of all sources sum to 1."""


class PretrainSettings(TrainingSettings):
    """Continued pre-training. A row is `max_length` tokens of whole documents, or of parts of those
    that are longer.
    """

    sources: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z0-9]+$")], TextSource], Field(min_length=1)
    ]
    """The paper's code expert reads more than 85 % code."""
    max_repeat: Annotated[int, Field(ge=1)] = 4
    """How often a document of a small source may be read, for each time of the largest."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """`linear` anneals the learning rate to 0 (section 3.4.3)."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-5

    @model_validator(mode="after")
    def _shares_are_whole(self) -> Self:
        total = sum(source.share for source in self.sources.values())
        if abs(total - 1) > 0.005:
            raise ValueError(f"sources: shares sum to {total:.4f}, expected 1")
        return self


class Expert(PretrainSettings):
    """A branch of the base."""

    align: bool = True
    """Fine-tune it on round 0's human examples, with the first SFT variant's settings, so that it
    answers dialogs; without, what it samples is a continuation."""
