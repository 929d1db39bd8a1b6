"""Reads the dials of a round: how far DPO has moved its model, and how fresh samples look.

Chosen log-probability and margin are the trainings' own, over their last steps; divergence from the
SFT model, ending, length and repetition are of the measure's samples for dev prompts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from posttrain.errors import GuardFailed
from posttrain.likelihood import Likelihood, assistant_log_probs
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.models.devices import pick_device
from posttrain.models.folders import load_causal
from posttrain.responses import contains_any, repetition
from posttrain.rows import Candidate
from posttrain.settings.plan import Dials
from posttrain.settings.stages import DialsStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_json, stream_rows
from posttrain.training.tokens import TokenRow, response_tokens


class Limit(NamedTuple):
    """Between what a dial may stand."""

    least: float | None = None
    most: float | None = None

    def passed(self, value: float) -> bool:
        """Whether the value lies outside."""
        below = self.least is not None and value < self.least
        return below or (self.most is not None and value > self.most)


def run(inputs: Inputs, settings: DialsStage, out: Output) -> None:
    """Write `dials.json`: each dial with its value, its limit and whether it is past it.

    Raises:
        GuardFailed: a dial that `dials.stop` names is past its limit.
    """
    rows = [
        row
        for row in stream_rows(inputs["measure"] / "responses.jsonl", Candidate)
        if ((row.model_extra or {})["split"], (row.model_extra or {})["mode"]) == ("dev", "sampled")
    ]
    values = {
        "eos_share": fmean(row.finish_reason == "stop" for row in rows),
        "repetition": fmean(repetition(row.response) for row in rows),
    }
    if "before" in inputs.paths:
        before = read_json(inputs["before"] / "rates.json")["dev"]["sampled"]["lengths"]
        length = fmean(row.num_tokens for row in rows)
        values["length_growth"] = length / max(1.0, float(before["mean_tokens"]))
    if settings.betas:
        values |= _of_trainings(inputs, settings.betas)
        values |= _divergence(inputs, rows, out)
    limits = limits_of(settings.dials)
    past = [name for name, value in values.items() if limits[name].passed(value)]
    dials = {
        name: {"value": value, **limits[name]._asdict(), "past": name in past}
        for name, value in values.items()
        if name in limits
    }
    out.write_json("dials", dials)
    out.metrics(dials=dials)
    stopped = [name for name in past if name in settings.dials.stop]
    if stopped:
        shown = ", ".join(f"{name} is {values[name]:.3g}" for name in stopped)
        raise GuardFailed(f"past the limits of `dials`: {shown} ({out.path / 'dials.json'})")


def limits_of(dials: Dials) -> dict[str, Limit]:
    """The limit of each dial."""
    return {
        "chosen_drop": Limit(most=dials.max_chosen_drop),
        "margin": Limit(least=dials.min_margin),
        "kl": Limit(most=dials.max_kl),
        "kl_per_token": Limit(),
        "eos_share": Limit(least=dials.min_eos_share),
        "length_growth": Limit(most=dials.max_length_growth),
        "repetition": Limit(most=dials.max_repetition),
    }


def _of_trainings(inputs: Inputs, betas: Mapping[str, float]) -> dict[str, float]:
    """The worst of the variants."""
    found: dict[str, dict[str, Any]] = {
        name: read_json(inputs[f"member:dpo-{name}"] / "manifest.json")["metrics"] for name in betas
    }
    return {
        "chosen_drop": max(0.0 - found[n]["rewards/chosen"] / beta for n, beta in betas.items()),
        "margin": min(one["rewards/margins"] for one in found.values()),
    }


def _divergence(inputs: Inputs, rows: Sequence[Candidate], out: Output) -> dict[str, float]:
    """An estimate of the divergence KL(policy, SFT model), on the policy's own samples.

    A sample that spells a control token cannot be read as it was written, and is counted.
    """
    forbidden = control_tokens(
        load_tokenizer(inputs["sft"] / "model", inputs.paths.get("template"))
    )
    plain = [row for row in rows if not contains_any(row.response, forbidden)]
    out.metrics(samples_with_control_tokens=len(rows) - len(plain))
    if not plain:
        return {}
    rows = plain
    own = _log_probs(inputs, inputs["candidate"] / "model", rows)
    out.progress(1, 2)
    reference = _log_probs(inputs, inputs["sft"] / "model", rows)
    out.progress(2, 2)
    gaps = [one.total - other.total for one, other in zip(own, reference, strict=True)]
    return {"kl": fmean(gaps), "kl_per_token": sum(gaps) / sum(one.tokens for one in own)}


def _log_probs(inputs: Inputs, model: Path, rows: Sequence[Candidate]) -> list[Likelihood]:
    tokenizer = load_tokenizer(model, inputs.paths.get("template"))
    tokens: list[TokenRow] = [response_tokens(tokenizer, row.messages, row.tools) for row in rows]
    loaded = load_causal(model)
    loaded.to(pick_device(inputs.resources.device))  # type: ignore[arg-type]
    return assistant_log_probs(loaded, tokens, int(tokenizer.pad_token_id))
