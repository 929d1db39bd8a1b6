"""Measures the variants of a round and their averages beside each other, greedy on dev.

For the report; nothing is decided by it.
"""

from posttrain.measuring import GREEDY, measure_model
from posttrain.settings.stages import MeasureMembersStage
from posttrain.steps.output import Inputs, Output


def run(inputs: Inputs, settings: MeasureMembersStage, out: Output) -> None:
    """Write `rates.json` (model → capability or `all` → rate)."""
    rates = {}
    for model in settings.models:
        measured, _ = measure_model(inputs, settings, out, f"model:{model}", ("dev",), (GREEDY,))
        rates[model] = {
            name: rate
            for name, rate in measured["dev"]["greedy"].items()
            if name not in ("measures", "lengths")
        }
    out.write_json("rates", rates)
    out.metrics(members=rates)
