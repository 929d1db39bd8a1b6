"""A step: a frozen handle on work that may or may not have been done.

Making one runs nothing and reads nothing. Its function is named as text and imported only in
the step's own process.

    Step("round-1/dpo-a", "posttrain.stages.dpo:run", 1, {"dpo": {...}}, inputs={"sft": sft})
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """One unit of work with one published folder."""

    address: str
    """`round-3/dpo`: where its output stands below the run's folder."""
    function: str
    """`package.module:function`."""
    version: int
    """Raised when the kind of step changes what it writes for the same settings."""
    settings: Mapping[str, Any]
    """Literals that define it; JSON values."""
    circumstances: frozenset[str] = frozenset()
    """Dotted paths in `settings` that are no part of the step's identity."""
    inputs: "Mapping[str, Step]" = field(default_factory=dict)
    """Steps it reads."""
    choices: "Mapping[str, Choice]" = field(default_factory=dict)
    """Steps it reads that a gate picks."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files and folders of the workspace it reads."""
    awaited: frozenset[str] = frozenset()
    """Names in `files` that people still have to provide."""
    weights: bool = False
    """Whether it writes model weights."""

    @property
    def round(self) -> int:
        """Which round it belongs to; 0 is the bootstrap."""
        return int(self.address.partition("/")[0].removeprefix("round-"))

    @property
    def name(self) -> str:
        """The address without its round."""
        return self.address.partition("/")[2]


@dataclass(frozen=True)
class Choice:
    """A step picked by a gate: known once the gate has published `policy.json`."""

    gate: Step
    file: str = "policy.json"
