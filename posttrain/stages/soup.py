"""Averages those members of a stage that pass most dev prompts together (section 4.1.5).

A greedy soup (arXiv 2203.05482): choices look at dev, greedy decoding.
"""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from posttrain.averaging import average_models, greedy_soup
from posttrain.errors import BadInput
from posttrain.measuring import GREEDY, engine_of, measure_model
from posttrain.settings.stages import SoupStage
from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output


def run(inputs: Inputs, settings: SoupStage, out: Output) -> None:
    """Write `model/`, and `soup.json`: the members that joined, and what each mixture measured.

    Raises:
        BadInput: no capability of the plan has a verifier.
    """
    engine = engine_of(inputs, settings)
    members = {name: inputs[f"member:{name}"] / "model" for name in settings.members}

    def pass_rate(label: str, folder: Path) -> float:
        name = f"model:{label}"
        mixed = replace(inputs, paths={**inputs.paths, name: folder})
        rates, _ = measure_model(mixed, settings, out, name, ("dev",), (GREEDY,), engine)
        found = rates["dev"]["greedy"].get("all")
        if found is None:
            raise BadInput("average.method: greedy needs a recipe with a verifier")
        return float(found["value"])

    with closing(engine):
        soup = greedy_soup(members, pass_rate, out.path / WORK / "soup")
    average_models([members[name] for name in soup.members], out.path / "model")
    out.write_json("soup", {"members": list(soup.members), "dev": soup.measures})
    out.metrics(members=len(soup.members), soup=soup.measures)
