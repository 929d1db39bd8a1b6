"""Measures the variants of a round and their averages beside each other, greedy on dev.

For the report; nothing is decided by it.
"""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from posttrain.measuring import GREEDY, engine_of, measure_model
from posttrain.settings.stages import MeasureMembersStage
from posttrain.steps.output import Inputs, Output


def run(inputs: Inputs, settings: MeasureMembersStage, out: Output) -> None:
    """Write `rates.json` (model → capability or `all` → rate)."""
    rates = {}
    with closing(engine_of(inputs, settings)) as engine:
        for model in settings.models:
            measured, _ = measure_model(
                inputs, settings, out, f"model:{model}", ("dev",), (GREEDY,), engine
            )
            rates[model] = _shown(measured)
    out.write_json("rates", rates)
    out.metrics(members=rates)


def _shown(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: rate
        for name, rate in measured["dev"]["greedy"].items()
        if name not in ("measures", "lengths")
    }
