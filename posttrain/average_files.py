"""Averages model folders outside of any run: uniform, weighted, or a greedy soup.

Knows folders and a file of development dialogs; the averaging is done by `posttrain.averaging`.

    average_files(AverageSettings(members=(Path("a"), Path("b"))), Path("mean"))
"""

import os
import shutil
from pathlib import Path
from typing import Any

from posttrain.averaging import average_models, greedy_soup
from posttrain.errors import BadInput
from posttrain.likelihood import assistant_log_probs
from posttrain.models.chat import load_tokenizer
from posttrain.models.devices import pick_device
from posttrain.models.folders import context_length, load_causal
from posttrain.progress import progress
from posttrain.settings.average_options import AverageSettings
from posttrain.tables import read_table
from posttrain.training.tokens import TokenRow, sft_tokens
from posttrain.user_rows import ScoredDialog

CARD = "README.md"


def average_files(settings: AverageSettings, out: Path) -> dict[str, Any]:
    """Write the average into a new folder, with a card that names its members; what was done.

    The folder appears whole. A greedy soup that was killed goes on.

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
        summary = _averaged(settings, model, work)
        os.replace(model, out)
    finally:
        # What a soup has measured is kept for the next try; nothing else is of use.
        shutil.rmtree(model, ignore_errors=True)
        if out.exists() or not work.exists():
            shutil.rmtree(partial)
    return summary


def _averaged(settings: AverageSettings, model: Path, work: Path) -> dict[str, Any]:
    members, measures = list(settings.members), {}
    if settings.method == "greedy":
        names = {f"{place:02}": member for place, member in enumerate(settings.members)}
        soup = _soup(settings, names, work)
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


def _soup(settings: AverageSettings, names: dict[str, Path], work: Path) -> Any:
    first = settings.members[0]
    if any((member / "adapter_config.json").exists() for member in settings.members):
        raise BadInput("--method greedy: merge adapters first, each has to be measured by itself")
    tokenizer = load_tokenizer(first, settings.template)
    assert settings.dev is not None
    table = read_table(settings.dev, ScoredDialog)
    table.check_share(0.0, "fix them")
    rows, _ = sft_tokens(tokenizer, table.rows, context_length(first))
    pad_token_id = int(tokenizer.pad_token_id)

    def measure(label: str, folder: Path) -> float:
        return -mean_nll(folder, rows, pad_token_id, settings)

    return greedy_soup(names, measure, work)


def mean_nll(
    folder: Path, rows: list[TokenRow], pad_token_id: int, settings: AverageSettings
) -> float:
    """Negative log-likelihood a target token, in nats."""
    model = load_causal(folder)
    model.to(pick_device(settings.device))  # type: ignore[arg-type]
    likely = assistant_log_probs(model, rows, pad_token_id)
    return -sum(one.total for one in likely) / sum(one.tokens for one in likely)


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
