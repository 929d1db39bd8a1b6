"""Publishes preference tasks for the next round: two responses from two different models (4.2.1).

Which prompts become tasks, and in which order, the plan's shares and the policy's dev pass rates
say. Which two models answer takes turns, prompt by prompt; which response is `a` is drawn from
the task's id, so that nobody can tell a model by its side.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from posttrain.errors import BadInput
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.preference_rows import JudgedRow
from posttrain.prompt_sources import gather_prompts
from posttrain.responses import CONTROL_TOKEN, Draw, contains_any, plain_requests
from posttrain.rows import (
    CONTROL_TOKENS,
    ID_HEX_DIGITS,
    Message,
    Messages,
    Preference,
    Prompt,
    Task,
    content_id,
    stable_seed,
)
from posttrain.sampling.service import KeptEngine
from posttrain.sampling.shards import generate_in_shards
from posttrain.settings.stages import TasksStage
from posttrain.shares import target_sizes
from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output
from posttrain.tables import json_lines, read_json, read_table

Pair = tuple[str, str]
"""Names of the inputs whose models meet."""


def run(inputs: Inputs, settings: TasksStage, out: Output) -> None:
    """Write `tasks.jsonl`, first things first; answers are rows of `posttrain.rows.Judgment`."""
    gathered = gather_prompts(inputs, settings, settings.round + 1, out)
    forbidden = control_tokens(load_tokenizer(inputs["base"]))
    prompts = _wanted(_in_order(gathered.prompts, inputs, settings), settings, out)
    asked = sorted(prompts, key=lambda p: content_id(p.id))
    pairs = {p.id: _pair(inputs, settings, p, place) for place, p in enumerate(asked)}
    answers = _all_answers(inputs, settings, out, asked, pairs)
    tasks = []
    for prompt in prompts:
        first, second = pairs[prompt.id]
        if stable_seed(settings.seed, prompt.id) % 2:
            first, second = second, first
        texts = answers[first, prompt.id], answers[second, prompt.id]
        if not all(text.strip() for text in texts):
            out.drop(prompt.id, "empty response")
            continue
        if texts[0].strip() == texts[1].strip():
            out.drop(prompt.id, "equal responses")
            continue
        if any(contains_any(text, forbidden) for text in texts):
            out.drop(prompt.id, CONTROL_TOKEN)
            continue
        models = _address(inputs[first]), _address(inputs[second])
        tasks.append(_task(prompt, texts, models, settings))
    if not tasks:
        raise BadInput(
            f"of {gathered.rows_in} prompts none is left to make a task of; name more prompts"
        )
    out.part("tasks", gathered.rows_in, len(tasks))
    known = _gold(inputs, settings, {task.id for task in tasks}, forbidden, out)
    out.write("tasks", [*tasks, *known])
    out.write_json(CONTROL_TOKENS.removesuffix(".json"), {"tokens": list(forbidden)})
    out.metrics(
        tasks=_by_capability(tasks),
        judged_twice=sum(task.times == 2 for task in tasks),
        gold=len(known),
    )


def _in_order(prompts: Sequence[Prompt], inputs: Inputs, settings: TasksStage) -> Sequence[Prompt]:
    """Prompts as they are to be judged: where the policy lags most first (section 4.2.1)."""
    if settings.tasks.order == "given":
        return prompts
    # Among equals chance decides, so that no source comes first.
    prompts = sorted(prompts, key=lambda p: content_id(p.id))
    passed: dict[tuple[str, int | None], list[bool]] = defaultdict(list)
    for row in json_lines(inputs["measure"] / "responses.jsonl"):
        if row["split"] == "dev" and row["mode"] == "sampled" and row.get("passed") is not None:
            passed[row["capability"], row.get("level")].append(row["passed"])
            passed[row["capability"], None].append(row["passed"])
    rates = {key: fmean(some) for key, some in passed.items()}

    def rate(prompt: Prompt) -> float:
        # A level that dev does not have is as hard as its capability; one without a verifier lies
        # in the middle.
        whole = rates.get((prompt.capability, None), 0.5)
        return rates.get((prompt.capability, prompt.level), whole)

    return sorted(prompts, key=rate)


def _wanted(prompts: Sequence[Prompt], settings: TasksStage, out: Output) -> list[Prompt]:
    """The first prompts of each capability, as many as its share asks for."""
    tasks = settings.tasks
    available = _by_capability(prompts)
    sizes = available
    if tasks.mix:
        sizes = target_sizes(available, tasks.mix, max_repeat=1, max_total=tasks.num)
    kept: list[Prompt] = []
    for prompt in prompts:
        if sizes.get(prompt.capability, 0) < 1:
            out.drop(prompt.id, "beyond the share of its capability in tasks.mix")
        elif tasks.num is not None and len(kept) == tasks.num:
            out.drop(prompt.id, "beyond tasks.num")
        else:
            sizes = {**sizes, prompt.capability: sizes[prompt.capability] - 1}
            kept.append(prompt)
    return kept


def _by_capability(rows: Iterable[Prompt | Task]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        found[row.capability] += 1
    return dict(sorted(found.items()))


def _pair(inputs: Inputs, settings: TasksStage, prompt: Prompt, place: int) -> Pair:
    """The two models that answer a prompt: of those that the plan names, in turn.

    Raises:
        BadInput: the plan names the expert alone, and the prompt's recipe has none.
    """
    pairs: list[Pair] = []
    for kind in settings.tasks.models:
        expert = f"expert:{prompt.capability}"
        if kind == "variants":
            pairs += pairwise(inputs.named("variant:"))
        elif kind == "previous":
            pairs.append(("policy", "previous"))
        elif expert in inputs.paths:
            pairs.append(("policy", expert))
    if not pairs:
        raise BadInput(
            f"tasks.models: {prompt.capability} samples from no expert; name another kind too"
        )
    return pairs[place % len(pairs)]


def _all_answers(
    inputs: Inputs,
    settings: TasksStage,
    out: Output,
    prompts: Sequence[Prompt],
    pairs: dict[str, Pair],
) -> dict[tuple[str, str], str]:
    """(model's input, prompt's id) → response."""
    answers: dict[tuple[str, str], str] = {}
    template, device = inputs.paths.get("template"), inputs.resources.device
    with closing(KeptEngine(settings.sampling.engine, template, device)) as engine:
        for model in sorted({model for pair in pairs.values() for model in pair}):
            mine = [prompt for prompt in prompts if model in pairs[prompt.id]]
            answers.update(_answers(inputs, settings, out, model, mine, engine))
    return answers


def _answers(
    inputs: Inputs,
    settings: TasksStage,
    out: Output,
    model: str,
    prompts: Sequence[Prompt],
    engine: KeptEngine,
) -> dict[tuple[str, str], str]:
    draw = Draw(stable_seed(settings.seed, "tasks", _address(inputs[model])), settings.round)
    asked = plain_requests(
        prompts, settings.recipes, draw, n=1, temperature=settings.tasks.temperature
    )
    answered = generate_in_shards(
        engine.holding(inputs.model(model)),
        [one.request for one in asked],
        settings.sampling.shard_size,
        out.path / WORK / model.replace(":", "-"),
        out.progress,
    )
    return {(model, request.id): samples[0].text for request, samples in answered}


def _task(prompt: Prompt, texts: Pair, models: Pair, settings: TasksStage) -> Task:
    a, b = ((Message(role="assistant", content=text),) for text in texts)
    task_id = _task_id(settings, prompt.id)
    share = stable_seed(settings.seed, "twice", task_id) / 2**31
    return Task.model_validate(
        {
            "id": task_id,
            "parents": (prompt.id,),
            "prompt": prompt.prompt,
            "a": a,
            "b": b,
            "tools": prompt.tools,
            "model_a": models[0],
            "model_b": models[1],
            "capability": prompt.capability,
            "batch": f"round-{settings.round + 1}",
            "times": 2 if share < settings.tasks.twice else None,
            "reference": prompt.reference,
            "level": prompt.level,
        }
    )


def _task_id(settings: TasksStage, row_id: str) -> str:
    """All of one shape, so that nobody knows a task by its id; `parents` hold the row's own."""
    own = row_id if re.fullmatch(f"[0-9a-f]{{{ID_HEX_DIGITS}}}", row_id) else content_id([row_id])
    return f"round-{settings.round}/{own}"


def _gold(
    inputs: Inputs, settings: TasksStage, known: set[str], forbidden: Sequence[str], out: Output
) -> list[Task]:
    """Tasks with a known answer, of the plan's file."""
    if settings.tasks.gold is None:
        return []
    table = read_table(inputs["gold"], JudgedRow, forbidden)
    table.check_share(inputs.resources.reject_share)
    out.reject(table.rejects)
    rows = [preference for row in table.rows for preference in row.preferences]
    tasks = []
    for row in rows:
        task = _gold_task(row, settings)
        if task.id in known:
            out.drop(row.id, "gold task with the id of another")
        elif row.capability not in settings.recipes:
            out.drop(row.id, f"unknown capability: {row.capability}")
        else:
            tasks.append(task)
            known.add(task.id)
    out.part("gold", len(rows) + len(table.rejects), len(tasks))
    return tasks


def _gold_task(row: Preference, settings: TasksStage) -> Task:
    ranking = row.ranking()
    sides: tuple[Messages, Messages] = (ranking[0], ranking[-1])
    turned = stable_seed(settings.seed, row.id) % 2 == 1
    extra = row.model_extra or {}
    return Task.model_validate(
        {
            "id": _task_id(settings, f"gold/{row.id}"),
            "parents": (row.id,),
            "prompt": row.prompt,
            "a": sides[turned],
            "b": sides[not turned],
            "tools": row.tools,
            "model_a": "gold/rejected" if turned else "gold/chosen",
            "model_b": "gold/chosen" if turned else "gold/rejected",
            "capability": row.capability,
            "batch": f"round-{settings.round + 1}",
            "gold": "b" if turned else "a",
            "reference": extra.get("reference", {}),
            "level": extra.get("level"),
        }
    )


def _address(folder: Path) -> str:
    """A step's address; a model folder's name."""
    manifest = folder / "manifest.json"
    return str(read_json(manifest)["address"]) if manifest.is_file() else folder.name
