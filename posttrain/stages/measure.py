"""Measures a model on the held-out prompts: pass rates by capability, greedy and sampled.

Gates look at dev; test is only reported.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from posttrain.generation import Engine
from posttrain.recipes import StepHandle, evaluate_all, open_recipes, verify_all
from posttrain.responses import Asked, Draw, candidates_of, plain_requests
from posttrain.rows import Candidate, Prompt
from posttrain.sampling.service import open_engine
from posttrain.sampling.shards import generate_in_shards
from posttrain.settings.stages import MeasureStage
from posttrain.statistics import Rate, mean_interval
from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows

Pair = tuple[Candidate, Prompt]


def run(inputs: Inputs, settings: MeasureStage, out: Output) -> None:
    """Write `rates.json` (split → mode → capability or `all` → rate) and `responses.jsonl`."""
    held_out = {
        split: load_rows(inputs["heldout"] / f"{split}.jsonl", Prompt) for split in ("dev", "test")
    }
    model = inputs["model"] / "model" if (inputs["model"] / "model").is_dir() else inputs["model"]
    engine = open_engine(
        settings.sampling.engine, model, inputs.paths.get("template"), inputs.resources.device
    )
    try:
        answered = _answers(engine, held_out, settings, out)
    finally:
        engine.close()
    recipes = open_recipes(inputs.workspace, settings.recipes)
    handle = StepHandle(inputs.resources.sandbox, settings.seed)
    rates: dict[str, Any] = {}
    rows = []
    for (split, mode), pairs in answered.items():
        verdicts = verify_all(recipes, pairs, handle, inputs.resources.sandbox_workers)
        passed = [None if verdict is None else verdict.passed for verdict in verdicts]
        judged = [
            (row.model_copy(update={"passed": ok}), prompt)
            for (row, prompt), ok in zip(pairs, passed, strict=True)
        ]
        place = rates.setdefault(split, {}).setdefault(mode, {})
        place.update(_rates(pairs, passed, settings))
        place["measures"] = evaluate_all(recipes, judged, handle)
        place["lengths"] = _lengths(pairs)
        rows += [
            row.model_copy(update={"split": split, "mode": mode, "level": prompt.level})
            for row, prompt in judged
        ]
    out.write_json("rates", rates)
    out.write("responses", rows)
    out.metrics(rates=rates)
    out.part("measure", len(rows), len(rows))


def _answers(
    engine: Engine, held_out: Mapping[str, Sequence[Prompt]], settings: MeasureStage, out: Output
) -> dict[tuple[str, str], list[Pair]]:
    """Split and mode → responses with their prompts."""
    modes = {
        "greedy": (1, 0.0),
        "sampled": (settings.evaluation.num_samples, settings.evaluation.temperature),
    }
    # The draw is the same in every round: two models meet the same prompts and seeds.
    draw = Draw(settings.seed, 0)
    asked: dict[str, tuple[str, str, Asked]] = {}
    for split, prompts in held_out.items():
        for mode, (n, temperature) in modes.items():
            for one in plain_requests(
                prompts, settings.recipes, draw, n=n, temperature=temperature
            ):
                request = one.request.model_copy(update={"id": f"{split}/{mode}/{one.request.id}"})
                asked[request.id] = (split, mode, Asked(request, one.prompt, None, 0))
    answered: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for request, samples in generate_in_shards(
        engine,
        [one.request for _, _, one in asked.values()],
        settings.sampling.shard_size,
        out.path / WORK / "shards",
        out.progress,
    ):
        split, mode, one = asked[request.id]
        rows = candidates_of(one, samples, "")
        answered[split, mode] += [
            (row.model_copy(update={"id": f"{mode}/{row.id}"}), one.prompt) for row in rows
        ]
    return answered


def _rates(
    pairs: Sequence[Pair], passed: Sequence[bool | None], settings: MeasureStage
) -> dict[str, dict[str, float]]:
    """Pass rate of each capability that has a verifier, and of all those weighted by the mix."""
    by_prompt: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for (_, prompt), ok in zip(pairs, passed, strict=True):
        if ok is not None:
            by_prompt[prompt.capability][prompt.id].append(ok)
    if not by_prompt:
        return {}
    confidence = settings.evaluation.confidence
    means = {c: [fmean(oks) for oks in prompts.values()] for c, prompts in by_prompt.items()}
    found = {c: mean_interval(values, confidence) for c, values in sorted(means.items())}
    weights = {c: settings.mix[c] for c in found}
    total = sum(weights.values())
    value = sum(weights[c] * rate.value for c, rate in found.items()) / total
    # Independent capabilities: variances of the weighted rates add up.
    half = sum((weights[c] / total * (r.high - r.low) / 2) ** 2 for c, r in found.items()) ** 0.5
    num = sum(rate.num for rate in found.values())
    everything = Rate(value, max(0.0, value - half), min(1.0, value + half), num)
    return {name: vars(rate) for name, rate in {"all": everything, **found}.items()}


def _lengths(pairs: Sequence[Pair]) -> dict[str, float]:
    rows = [row for row, _ in pairs]
    return {
        "mean_tokens": fmean(row.num_tokens for row in rows),
        "eos_share": fmean(row.finish_reason == "stop" for row in rows),
    }
