"""Averages those model folders that are likeliest to say what a file of dialogs says, together.

A greedy soup (arXiv 2203.05482) by the likelihood of development dialogs, outside of any run.

    soup_files(AverageSettings(members=(Path("a"), Path("b")), dev=Path("dev.jsonl")), Path("soup"))
"""

from pathlib import Path
from typing import Any

from posttrain.average_files import average_files
from posttrain.averaging import greedy_soup
from posttrain.averaging.soup import Soup
from posttrain.errors import BadInput
from posttrain.likelihood import assistant_log_probs
from posttrain.models.chat import load_tokenizer
from posttrain.models.devices import pick_device
from posttrain.models.files import ADAPTER_FILE, context_length
from posttrain.models.folders import load_causal
from posttrain.settings.average_options import AverageSettings
from posttrain.tables import read_table
from posttrain.training.tokens import TokenRow, sft_tokens
from posttrain.user_rows import ScoredDialog


def soup_files(settings: AverageSettings, out: Path) -> dict[str, Any]:
    """Write the average of the members that measure best together; see `average_files`.

    Raises:
        BadInput: as `average_files`, or a member is an adapter.
    """
    return average_files(settings, out, choose)


def choose(settings: AverageSettings, names: dict[str, Path], work: Path) -> Soup:
    """The members that join, by mean likelihood a target token."""
    first = settings.members[0]
    if any((member / ADAPTER_FILE).exists() for member in settings.members):
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
