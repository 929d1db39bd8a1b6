"""The message that asks a worker for one step; JSON in both directions."""

from typing import Any

from posttrain.settings.base import Settings


class Job(Settings):
    """One step to run, with its paths and circumstances."""

    address: str
    function: str
    settings: dict[str, Any]
    payload: dict[str, Any]
    fingerprint: str
    inputs: dict[str, str]
    """Input's name → the address it is read from."""
    paths: dict[str, str]
    partial: str
    final: str
    workspace: str
    resources: dict[str, Any]
    machine: str
    """A file of this run that remembers what was decided once, such as the precision."""
    trains: bool
    """Whether it trains a model, and so wants one device for itself."""
    log: str
    argv: list[str]
