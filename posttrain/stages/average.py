"""Averages the members of a stage into one model (section 4.1.5)."""

from posttrain.averaging import average_models
from posttrain.settings.stages import AverageStage
from posttrain.steps.output import Inputs, Output


def run(inputs: Inputs, settings: AverageStage, out: Output) -> None:
    """Write `model/`: the mean of the members' weights."""
    members = [inputs[f"member:{name}"] / "model" for name in settings.members]
    weights = None
    if settings.weights is not None:
        weights = [settings.weights[name] for name in settings.members]
    average_models(members, out.path / "model", weights)
    out.metrics(members=len(members))
