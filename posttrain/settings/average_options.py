"""What `posttrain average` can be told. Loads little; `posttrain.average_files` does the work.

AverageSettings(members=(Path("a"), Path("b")), method="weighted", weights=(0.7, 0.3))
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from posttrain.settings.base import Settings


class AverageSettings(Settings):
    """Which models are averaged, and how."""

    members: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Model folders, or folders of LoRA adapters."""
    method: Literal["uniform", "weighted", "greedy"] = "uniform"
    """`greedy` starts with the member that finds `dev` likeliest, and lets the others join one by
    one where the average finds it no less likely (arXiv 2203.05482)."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """For `weighted`: one a member; only their ratios matter."""
    dev: Path | None = None
    """For `greedy`: dialogs whose answers the mixtures are measured by, JSONL or Parquet."""
    base: Path | None = None
    """The model that adapters were trained on; None takes what they name."""
    template: Path | None = None
    """For `greedy`: the chat template; None takes the first member's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """For `greedy`: where mixtures are measured."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if (self.method == "weighted") != bool(self.weights):
            raise ValueError("weights and method weighted belong together")
        if self.weights and len(self.weights) != len(self.members):
            raise ValueError(
                f"expected {len(self.members)} weights, one a member, got {len(self.weights)}"
            )
        if self.weights and not sum(self.weights):
            raise ValueError("weights: at least one must be above 0")
        if (self.method == "greedy") != (self.dev is not None):
            raise ValueError("method greedy and a file of dev dialogs belong together")
        if len({member.resolve() for member in self.members}) < len(self.members):
            raise ValueError("a member is named twice; give it a larger weight instead")
        return self
