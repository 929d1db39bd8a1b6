"""A model's answers to held-out prompts, verified, and its pass rates with intervals.

Knows engines, recipes and shards; which models, splits and modes are measured is a stage's affair.

    with closing(engine_of(inputs, settings)) as engine:
        rates, rows = measure_model(inputs, settings, out, "model", ("dev",), (GREEDY,), engine)
    rates["dev"]["greedy"]["all"]      # {"value": 0.71, "low": 0.66, "high": 0.76, "num": 190}
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from posttrain.generation import Engine
from posttrain.recipes import StepHandle, evaluate_all, open_recipes, verify_all
from posttrain.responses import Asked, Draw, candidates_of, plain_requests
from posttrain.rows import Candidate, Prompt
from posttrain.sampling.service import KeptEngine
from posttrain.sampling.shards import generate_in_shards
from posttrain.settings.stages import MeasureStage
from posttrain.statistics import mean_interval, stratified_mean
from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows

Pair = tuple[Candidate, Prompt]


class Mode(NamedTuple):
    """How a model answers."""

    name: str
    num: int
    """Responses a prompt."""
    temperature: float


GREEDY = Mode("greedy", 1, 0.0)


def measure_model(
    inputs: Inputs,
    settings: MeasureStage,
    out: Output,
    name: str,
    splits: Sequence[str],
    modes: Sequence[Mode],
    engine: KeptEngine,
) -> tuple[dict[str, Any], list[Candidate]]:
    """Rates (split → mode → capability or `all`, `measures`, `lengths`) and every response.

    `name` is that of the input which holds the model, a step's folder or a checkpoint. The caller
    closes the engine, which it may use for several models.

    Raises:
        EngineFailed: the engine cannot answer.
    """
    held_out = {s: load_rows(inputs["heldout"] / f"{s}.jsonl", Prompt) for s in splits}
    shards = "shards" if name == "model" else f"shards-{name.partition(':')[2]}"
    answered = _answers(engine.holding(inputs.model(name)), held_out, modes, settings, out, shards)
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
    return rates, rows


def engine_of(inputs: Inputs, settings: MeasureStage) -> KeptEngine:
    """The engine of a step that measures."""
    template, device = inputs.paths.get("template"), inputs.resources.device
    return KeptEngine(settings.sampling.engine, template, device)


def _answers(
    engine: Engine,
    held_out: Mapping[str, Sequence[Prompt]],
    modes: Sequence[Mode],
    settings: MeasureStage,
    out: Output,
    shards: str,
) -> dict[tuple[str, str], list[Pair]]:
    """Split and mode → responses with their prompts."""
    # The draw is the same in every round: two models meet the same prompts and seeds.
    draw = Draw(settings.seed, 0)
    asked: dict[str, tuple[str, str, Asked]] = {}
    for split, prompts in held_out.items():
        for mode in modes:
            for one in plain_requests(
                prompts, settings.recipes, draw, n=mode.num, temperature=mode.temperature
            ):
                at = f"{split}/{mode.name}/{one.request.id}"
                request = one.request.model_copy(update={"id": at})
                asked[at] = (split, mode.name, Asked(request, one.prompt, None, 0))
    answered: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for request, samples in generate_in_shards(
        engine,
        [one.request for _, _, one in asked.values()],
        settings.sampling.shard_size,
        out.path / WORK / shards,
        out.progress,
    ):
        split, mode_name, one = asked[request.id]
        rows = candidates_of(one, samples, "")
        answered[split, mode_name] += [
            (row.model_copy(update={"id": f"{mode_name}/{row.id}"}), one.prompt) for row in rows
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
    mean = stratified_mean(means, settings.mix, confidence)
    everything = replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))
    return {name: vars(rate) for name, rate in {"all": everything, **found}.items()}


def _lengths(pairs: Sequence[Pair]) -> dict[str, float]:
    rows = [row for row, _ in pairs]
    return {
        "mean_tokens": fmean(row.num_tokens for row in rows),
        "eos_share": fmean(row.finish_reason == "stop" for row in rows),
    }
