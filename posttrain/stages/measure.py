"""Measures a model on the held-out prompts: pass rates by capability, greedy and sampled.

Gates look at dev; test is only reported.
"""

from posttrain.measuring import GREEDY, Mode, measure_model
from posttrain.settings.stages import MeasureStage
from posttrain.steps.output import Inputs, Output


def run(inputs: Inputs, settings: MeasureStage, out: Output) -> None:
    """Write `rates.json` (split → mode → capability or `all` → rate) and `responses.jsonl`."""
    evaluation = settings.evaluation
    modes = (GREEDY, Mode("sampled", evaluation.num_samples, evaluation.temperature))
    rates, rows = measure_model(inputs, settings, out, "model", ("dev", "test"), modes)
    out.write_json("rates", rates)
    out.write("responses", rows)
    out.metrics(rates=rates)
    out.part("measure", len(rows), len(rows))
