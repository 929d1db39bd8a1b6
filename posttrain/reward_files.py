"""Scores dialogs of a file, and measures a reward model on pairs of a file, outside of any run.

Knows the rows that users bring: dialogs with an id, our preference rows, and RewardBench's. Knows
no step and no plan.

    score_file(ScorerSettings(model=Path("rm")), Path("rows.jsonl"), Path("scores.jsonl"))
    measure_file(ScorerSettings(model=Path("rm")), Path("pairs.jsonl"))["measures"]["all"]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Printed

from posttrain.errors import BadInput
from posttrain.models.chat import check_same_template, control_tokens, load_tokenizer
from posttrain.models.devices import pick_device
from posttrain.progress import progress
from posttrain.reward_measures import ScoredPair, measures
from posttrain.rows import Messages, Preference, Strength, Tools, content_id
from posttrain.scoring import (
    TOO_LONG,
    Dialog,
    RewardScorer,
    check_reward_model,
    score_in_chunks,
    score_pairs,
)
from posttrain.settings.engines import ScorerSettings, VllmEngineSettings
from posttrain.tables import Table, read_table, write_rows
from posttrain.user_rows import with_text_id

RowT = TypeVar("RowT", bound=BaseModel)


class DialogRow(BaseModel):
    """A finished dialog to score; a sampled response is one. Other columns are not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = ""
    messages: Messages
    tools: Tools | None = None
    model: Any = None
    """The model that answered; where it is a folder, as `posttrain sample` writes it, templates are
    compared."""

    @model_validator(mode="before")
    @classmethod
    def _give_id(cls, data: Any) -> Any:
        row = with_text_id(data)
        if not isinstance(row, Mapping) or row.get("id"):
            return row
        return {**row, "id": content_id([row.get("messages"), row.get("tools")])}

    @model_validator(mode="after")
    def _ends_with_assistant(self) -> Self:
        if self.messages[-1].role != "assistant":
            raise ValueError(
                f"a dialog to score ends with an assistant turn, not {self.messages[-1].role}"
            )
        return self


class PairRow(Preference):
    """A preference, or a benchmark's pair: texts may stand for messages, and no strength is known.

    RewardBench's rows are `prompt, chosen, rejected, subset`, and an id that is a number.
    """

    strength: Strength = Strength.BETTER
    """Only looked at where the row has one."""

    @model_validator(mode="before")
    @classmethod
    def _with_messages(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        row = dict(with_text_id(data))
        if isinstance(row.get("prompt"), str):
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        for side in ("chosen", "rejected", "edited"):
            row[side] = _response(row.get(side), row.get("prompt"))
        return row


def score_file(settings: ScorerSettings, rows: Path, out: Path) -> str:
    """Score every dialog of a file; one line about how it went.

    `out` gets `id` and `score`, in the rows' order, and is whole or absent. Rows that are malformed
    or longer than the model's context get their reason in a file beside it.

    Raises:
        BadInput: no reward model, no such file, too many malformed rows, nothing to score, or
            responses of a model with another chat template.
        GuardFailed: a score is no finite number, or depends on its batch.
    """
    rejects = out.with_name(f"{out.stem}.rejects.jsonl")
    if rows.resolve() in (out.resolve(), rejects.resolve()):
        raise BadInput(f"--out {out}: this would overwrite the rows; name another file")
    table = _read(settings, rows, DialogRow)
    if settings.template is None:
        for model in sorted({row.model for row in table.rows if isinstance(row.model, str)}):
            if (Path(model) / "tokenizer_config.json").is_file():
                check_same_template(Path(model), settings.model, "--template")
    scorer = _open(settings)
    try:
        dialogs = [Dialog(row.messages, row.tools, row.id) for row in table.rows]
        with progress("scoring", "dialogs") as told:
            scores = score_in_chunks(scorer, dialogs, told)
    finally:
        scorer.close()
    pairs = list(zip(dialogs, scores, strict=True))
    long = [{"id": row.id, "reason": TOO_LONG} for row, score in pairs if score is None]
    rejected = [*map(vars, table.rejects), *long]
    rejects.unlink(missing_ok=True)
    if rejected:
        write_rows(rejects, rejected)
    scored = [{"id": row.id, "score": score} for row, score in pairs if score is not None]
    write_rows(out, scored)
    line = f"{len(scored)} of {len(scored) + len(rejected)} rows scored"
    if not rejected:
        return line
    return f"{line}; {len(long)} too long, {len(table.rejects)} malformed: see {rejects}"


def measure_file(settings: ScorerSettings, pairs: Path) -> dict[str, Any]:
    """Measure a reward model on a file of pairs.

    Returns:
        Counts of the rows (`pairs`, `too_long`, `malformed`), and `measures` as
        `posttrain.reward_measures` gives them.

    Raises:
        BadInput: no reward model, no such file, too many malformed rows, or no pair that fits.
        GuardFailed: a score is no finite number, or depends on its batch.
    """
    table = _read(settings, pairs, PairRow)
    scorer = _open(settings)
    try:
        found = zip(table.rows, score_pairs(scorer, table.rows), strict=True)
    finally:
        scorer.close()
    scored = [ScoredPair(row, *scores) for row, scores in found if scores is not None]
    if not scored:
        raise BadInput(f"{pairs}: none of {len(table.rows)} pairs fits the model's context")
    return {
        "model": str(settings.model),
        "file": str(pairs),
        "pairs": len(scored),
        "too_long": len(table.rows) - len(scored),
        "malformed": len(table.rejects),
        "measures": measures(scored),
    }


def print_measures(result: Mapping[str, Any]) -> None:
    """Print what `measure_file` found, as a table."""
    found = result["measures"]
    table = Printed(title=escape(f"{result['model']} on {result['file']}"))
    for index, column in enumerate(("pairs that", "num", "accuracy", "95 %", "longer wins")):
        table.add_column(column, justify="left" if index == 0 else "right")
    table.add_row(*_cells("all", found["all"]), end_section=True)
    for name in ("strength", "capability", "source", "length_difference"):
        if found[name]:
            table.add_row(f"[bold]by {name.replace('_', ' ')}")
        for label, rates in found[name].items():
            table.add_row(*_cells(f"  {label}", rates), end_section=label == list(found[name])[-1])
    console = Console()
    console.print(table)
    correlation = found["length_correlation"]
    for line in (
        f"calibration error of σ(Δ), 10 bins: {_number(found['calibration']['ece'])}",
        "Spearman of reward and length: "
        f"{_number(correlation['responses'])} over responses, "
        f"{_number(correlation['pairs'])} between the two responses of a prompt",
        f"left out: {result['too_long']} pairs too long, {result['malformed']} rows malformed",
    ):
        console.print(line, highlight=False)


def _read(settings: ScorerSettings, path: Path, kind: type[RowT]) -> Table[RowT]:
    """The rows of a file, once it is known that there is a model to score them."""
    if settings.template is not None and not settings.template.is_file():
        raise BadInput(f"{settings.template}: no such chat template")
    check_reward_model(settings.model)
    tokenizer = load_tokenizer(settings.model, settings.template)
    table = read_table(path, kind, control_tokens(tokenizer))
    table.check_share(settings.reject_share, "--reject-share")
    if not table.rows:
        raise BadInput(f"{path}: expected rows to score, it has none")
    return table


def _open(settings: ScorerSettings) -> RewardScorer:
    # Its config's dtype, which vLLM would take, is how the weights are stored.
    vllm = VllmEngineSettings(type="vllm", dtype="float32", python=settings.python)
    return RewardScorer(
        settings.model,
        settings.template,
        device=pick_device(settings.device),
        vllm=vllm if settings.engine == "vllm" else None,
    )


def _response(side: Any, prompt: Any) -> Any:
    """A response as messages: a text stands for one turn, a whole dialog for its last part."""
    if isinstance(side, str):
        return [{"role": "assistant", "content": side}]
    if isinstance(side, list) and isinstance(prompt, list) and side[: len(prompt)] == prompt:
        return side[len(prompt) :]
    return side


def _cells(label: str, rates: Mapping[str, Any]) -> tuple[str, ...]:
    accuracy, longer = rates["accuracy"], rates["longer_wins"]
    return (
        escape(label),
        str(accuracy["num"]),
        f"{100 * accuracy['value']:.1f} %",
        f"{100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f}",
        f"{100 * longer['value']:.1f} %",
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
