"""Averages model folders outside of any run.

Knows folders; the averaging is done by `posttrain.averaging`. Loads no model, and
nothing that could: measuring models to choose among them is `posttrain.soup_files`'s affair.

    average_files(AverageSettings(members=(Path("a"), Path("b"))), Path("mean"))
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.averaging import average_models
from posttrain.averaging.soup import Soup
from posttrain.errors import BadInput
from posttrain.progress import progress
from posttrain.settings.average_options import AverageSettings

CARD = "README.md"
Choose = Callable[[AverageSettings, dict[str, Path], Path], Soup]
"""Members by name, and a folder to remember measures in, to those that join."""


def average_files(
    settings: AverageSettings, out: Path, choose: Choose | None = None
) -> dict[str, Any]:
    """Write the average into a new folder, with a card that names its members; what was done.

    The folder appears whole. A soup that was killed goes on.

    Args:
        settings: The members, and how they are weighed.
        out: The folder.
        choose: Which of them join; None has all of them.

    Raises:
        BadInput: the folder is there, or members do not fit together.
        Damaged: a member's file is truncated, or holds NaN or infinity.
        GuardFailed: tied weights differ in the result.
    """
    if out.exists():
        raise BadInput(f"--out {out}: already there; name a new folder")
    partial = out.with_name(out.name + ".partial")
    model, work = partial / "model", partial / "work"
    shutil.rmtree(model, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        summary = _averaged(settings, model, work, choose)
        os.replace(model, out)
    finally:
        # What a soup has measured is kept for the next try; nothing else is of use.
        shutil.rmtree(model, ignore_errors=True)
        if out.exists() or not work.exists():
            shutil.rmtree(partial)
    return summary


def _averaged(
    settings: AverageSettings, model: Path, work: Path, choose: Choose | None
) -> dict[str, Any]:
    members, measures = list(settings.members), {}
    if choose is not None:
        names = {f"{place:02}": member for place, member in enumerate(settings.members)}
        soup = choose(settings, names, work)
        members = [names[name] for name in soup.members]
        shown = {name: str(member) for name, member in names.items()}
        measures = {
            " + ".join(shown[name] for name in label.split("+")): -value
            for label, value in soup.measures.items()
        }
    weights = settings.weights or None
    with progress("averaging", "models") as told:
        told(0, len(members))
        report = average_models(members, model, weights, settings.base)
    summary = {
        "method": settings.method,
        "members": [str(member) for member in members],
        "weights": list(settings.weights) or [1.0] * len(members),
        "tensors": report.num_tensors,
        "parameters": report.num_parameters,
        **({"nll": measures} if measures else {}),
    }
    (model / CARD).write_text(_card(summary))
    return summary


def _card(summary: dict[str, Any]) -> str:
    listed = "\n".join(f"- {member}" for member in summary["members"])
    rows = "\n".join(
        f"| `{member}` | {weight:g} |"
        for member, weight in zip(summary["members"], summary["weights"], strict=True)
    )
    return (
        "---\nlibrary_name: transformers\nbase_model:\n"
        f"{listed}\nbase_model_relation: merge\ntags: [posttrain, merge]\n---\n\n"
        f"The {summary['method']} average of the weights of these models, made by `posttrain "
        "average` (arXiv 2407.21783, section 4.1.5).\n\n| model | weight |\n|---|---|\n"
        f"{rows}\n"
    )
