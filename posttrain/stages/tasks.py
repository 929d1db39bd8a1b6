"""Publishes preference tasks for the next round: two responses from two different models (4.2.1).

Which two models answer takes turns, prompt by prompt; which response is shown first is drawn from
the task's id, so that nobody can tell a model by its side.
"""

from collections.abc import Sequence
from contextlib import closing
from itertools import cycle, pairwise
from pathlib import Path

from posttrain.errors import BadInput
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.prompt_sources import gather_prompts
from posttrain.responses import CONTROL_TOKEN, Draw, contains_any, plain_requests
from posttrain.rows import Message, Prompt, Task, content_id, stable_seed
from posttrain.sampling.service import KeptEngine
from posttrain.sampling.shards import generate_in_shards
from posttrain.settings.stages import TasksStage
from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_json


def run(inputs: Inputs, settings: TasksStage, out: Output) -> None:
    """Write `tasks.jsonl`; answers are rows of `posttrain.rows.Judgment`."""
    gathered = gather_prompts(inputs, settings, settings.round + 1, out)
    forbidden = control_tokens(load_tokenizer(inputs["base"]))
    prompts = [prompt for split in gathered.by_split.values() for prompt in split]
    prompts.sort(key=lambda p: content_id(p.id))
    pairs = _pairs(inputs, settings)
    answers: dict[tuple[str, str], str] = {}
    template, device = inputs.paths.get("template"), inputs.resources.device
    with closing(KeptEngine(settings.sampling.engine, template, device)) as engine:
        for model in sorted({model for pair in pairs for model in pair}):
            mine = [p for p, pair in zip(prompts, cycle(pairs), strict=False) if model in pair]
            answers.update(_answers(inputs, settings, out, model, mine, engine))
    tasks = []
    for prompt, (first, second) in zip(prompts, cycle(pairs), strict=False):
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
        tasks.append(_task(prompt, texts, models, settings.round))
    if not tasks:
        raise BadInput(
            f"of {gathered.rows_in} prompts none is left to make a task of; name more prompts"
        )
    out.write("tasks", tasks)
    out.part("tasks", gathered.rows_in, len(tasks))


def _pairs(inputs: Inputs, settings: TasksStage) -> list[tuple[str, str]]:
    """Names of the inputs whose models meet."""
    pairs = []
    for kind in settings.tasks.models:
        if kind == "variants":
            names = list(inputs.named("variant:"))
            pairs += list(pairwise(names))
        else:
            pairs.append(("policy", "previous"))
    return pairs


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
    folder = inputs[model] / "model"
    answered = generate_in_shards(
        engine.holding(folder if folder.is_dir() else inputs[model]),
        [one.request for one in asked],
        settings.sampling.shard_size,
        out.path / WORK / model.replace(":", "-"),
        out.progress,
    )
    return {(model, request.id): samples[0].text for request, samples in answered}


def _task(
    prompt: Prompt, texts: tuple[str, str], models: tuple[str, str], round_number: int
) -> Task:
    a, b = ((Message(role="assistant", content=text),) for text in texts)
    return Task.model_validate(
        {
            "id": f"round-{round_number}/{prompt.id}",
            "parents": (prompt.id,),
            "prompt": prompt.prompt,
            "a": a,
            "b": b,
            "tools": prompt.tools,
            "model_a": models[0],
            "model_b": models[1],
            "capability": prompt.capability,
            "batch": f"round-{round_number + 1}",
            "reference": prompt.reference,
            "level": prompt.level,
        }
    )


def _address(folder: Path) -> str:
    manifest = folder / "manifest.json"
    return str(read_json(manifest)["address"]) if manifest.is_file() else "base"
