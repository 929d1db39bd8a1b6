"""Runs model-written programs where they can do no harm: see `posttrain.sandbox.box`."""

from posttrain.sandbox.box import Sandbox, available, find_python
from posttrain.sandbox.running import Program
from posttrain.settings.engines import SandboxLimits

__all__ = ["Program", "Sandbox", "SandboxLimits", "available", "find_python"]
