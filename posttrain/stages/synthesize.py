"""Has recipes make training examples of a round's prompts, in as many steps as they need (4.3).

A row in which the hook fails is dropped with the last line of what it raised; past a share of such
rows the recipe stops, and the others go on. Every example names its recipe, hook and parents.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from typing import Any

from posttrain.hook_rows import STOPPED, HookRows
from posttrain.hooks import Handle
from posttrain.rows import Example, Prompt
from posttrain.settings.stages import SynthesizeStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows

HOOK = "synthesize"


def run(inputs: Inputs, settings: SynthesizeStage, out: Output) -> None:
    """Write `examples.jsonl`."""
    prompts = load_rows(inputs["prompts"] / "train.jsonl", Prompt)
    by_capability: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_capability[prompt.capability].append(prompt)
    made: list[Example] = []
    told: dict[str, dict[str, Any]] = {}
    with closing(HookRows(inputs, settings, out)) as hooks:
        for capability, recipe in hooks.recipes.items():
            if HOOK not in recipe.hooks:
                continue
            mine = by_capability[capability]
            own, failed = _of_recipe(hooks, capability, mine, settings.round, out)
            made += own
            told[capability] = {"prompts": len(mine), "examples": len(own), "failed": failed}
            out.progress(len(made), len(prompts))
    out.write("examples", made)
    sources = Counter(row.source for row in made)
    out.metrics(synthesized=told, by_source=dict(sorted(sources.items())))
    asked = sum(one["prompts"] for one in told.values())
    out.part(HOOK, asked, asked - sum(one["failed"] for one in told.values()))


def _of_recipe(
    hooks: HookRows, capability: str, prompts: list[Prompt], round_number: int, out: Output
) -> tuple[list[Example], int]:
    """One recipe's examples, and how many of its prompts failed or were not reached."""
    function = hooks.recipes[capability].hooks[HOOK]
    tasks = [(prompt.id, partial(_examples, function, prompt, capability)) for prompt in prompts]
    made: dict[str, Example] = {}
    reached = failed = 0
    for outcome, prompt in zip(hooks.run(capability, HOOK, tasks), prompts, strict=False):
        reached += 1
        if outcome.problem or outcome.value is None:
            failed += 1
            out.drop(prompt.id, f"{capability}.{HOOK}: {outcome.problem}", parents=[prompt.id])
            continue
        for example in outcome.value:
            if example.id in made:
                out.drop(example.id, f"{capability}.{HOOK}: an example twice", parents=[prompt.id])
            else:
                made[example.id] = example.model_copy(update={"round": round_number})
    for prompt in prompts[reached:]:
        failed += 1
        out.drop(prompt.id, f"{capability}.{HOOK}: {STOPPED}", parents=[prompt.id])
    return list(made.values()), failed


def _examples(
    function: Callable[[Prompt, Handle], Iterable[Example]],
    prompt: Prompt,
    capability: str,
    handle: Handle,
) -> list[Example]:
    """What a hook yields of a prompt, checked and with where it comes from."""
    found = []
    for example in function(prompt, handle):
        if not isinstance(example, Example):
            raise TypeError(f"yielded {type(example).__name__}, expected an Example")
        if example.capability != capability:
            raise ValueError(f"yielded an example of {example.capability}, expected {capability}")
        source = f"{capability}.{HOOK}"
        found.append(
            example.model_copy(
                update={
                    "parents": (prompt.id, *(p for p in example.parents if p != prompt.id)),
                    "source": f"{source}/{example.source}" if example.source else source,
                }
            )
        )
    return found
