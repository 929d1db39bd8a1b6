"""Measures a model on the held-out prompts: pass rates by capability, greedy and sampled.

Gates look at dev; test is only reported.
"""

from contextlib import closing

from posttrain.measuring import GREEDY, Mode, engine_of, measure_model
from posttrain.settings.stages import MeasureStage
from posttrain.steps.output import Inputs, Output


def run(inputs: Inputs, settings: MeasureStage, out: Output) -> None:
    """Write `rates.json` (split → mode → capability or `all` → rate) and `responses.jsonl`."""
    evaluation = settings.evaluation
    modes = (GREEDY, Mode("sampled", evaluation.num_samples, evaluation.temperature))
    splits = ("dev", "test")
    with closing(engine_of(inputs, settings)) as engine:
        rates, rows = measure_model(inputs, settings, out, "model", splits, modes, engine)
    out.write_json("rates", rates)
    out.write("responses", rows)
    out.metrics(rates=rates)
    out.part("measure", len(rows), len(rows))
