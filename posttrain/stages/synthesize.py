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
from posttrain.hooks import Handle, Rejected
from posttrain.responses import contains_any
from posttrain.rows import Example, MadeExample, Prompt, split_of
from posttrain.settings.stages import SynthesizeStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows

HOOK = "synthesize"


def run(inputs: Inputs, settings: SynthesizeStage, out: Output) -> None:
    """Write `examples.jsonl`."""
    by_capability: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in load_rows(inputs["prompts"] / "train.jsonl", Prompt):
        if prompt.capability not in settings.seeded:
            by_capability[prompt.capability].append(prompt)
    if settings.seeded:
        for seed in load_rows(inputs["prompts"] / "seeds.jsonl", Prompt):
            by_capability[seed.capability].append(seed)
    made: list[MadeExample] = []
    told: dict[str, dict[str, Any]] = {}
    asked = fruitful = 0
    with closing(HookRows(inputs, settings, out)) as hooks:
        makers = [name for name, recipe in hooks.recipes.items() if HOOK in recipe.hooks]
        total = sum(len(by_capability[name]) for name in makers)
        for capability in makers:
            mine = by_capability[capability]
            maker = _Maker(hooks, capability, settings, out)
            own = maker.examples(mine)
            made += own
            asked, fruitful = asked + len(mine), fruitful + maker.fruitful
            told[capability] = {
                "prompts": len(mine),
                "examples": len(own),
                "failed": maker.failed,
                "rejected": dict(sorted(maker.rejected.items())),
            }
            out.progress(asked, total)
    out.write("examples", made)
    sources = Counter(row.source for row in made)
    out.metrics(synthesized=told, by_source=dict(sorted(sources.items())))
    out.part(HOOK, asked, fruitful)


class _Maker:
    """One recipe's examples, and what became of the rows that gave none."""

    def __init__(
        self, hooks: HookRows, capability: str, settings: SynthesizeStage, out: Output
    ) -> None:
        self._hooks, self._capability = hooks, capability
        self._settings, self._out = settings, out
        self.failed = self.fruitful = 0
        """Rows in which the hook failed or that were not reached; rows that gave an example."""
        self.rejected: Counter[str] = Counter()
        """What the hook made and threw away, by reason."""

    def examples(self, prompts: list[Prompt]) -> list[MadeExample]:
        """What the hook makes of prompts, each example once."""
        function = self._hooks.recipes[self._capability].hooks[HOOK]
        tasks = [(p.id, partial(_yielded, function, p, self._capability)) for p in prompts]
        made: dict[str, MadeExample] = {}
        reached = 0
        outcomes = self._hooks.run(self._capability, HOOK, tasks)
        for outcome, prompt in zip(outcomes, prompts, strict=False):
            reached += 1
            if outcome.problem or outcome.value is None:
                self.failed += 1
                self._drop(prompt.id, f": {outcome.problem}", prompt)
                continue
            before = len(made)
            for one in outcome.value:
                self._take(one, prompt, made)
            self.fruitful += len(made) > before
            if not outcome.value:
                self._drop(prompt.id, ", made nothing", prompt)
        for prompt in prompts[reached:]:
            self.failed += 1
            self._drop(prompt.id, f": {STOPPED}", prompt)
        return list(made.values())

    def _take(
        self, one: MadeExample | Rejected, prompt: Prompt, made: dict[str, MadeExample]
    ) -> None:
        splits = self._settings.splits
        if isinstance(one, Rejected):
            self.rejected[one.reason] += 1
            # What stands before a colon is what the books count.
            self._drop(prompt.id, f", {one.reason.replace(':', ',')}", prompt, detail=one.detail)
        elif any(contains_any(turn.content, self._hooks.forbidden) for turn in one.messages):
            self.rejected["control token"] += 1
            self._drop(one.id, ", control token", prompt)
        elif one.id in made:
            self._drop(one.id, ", an example twice", prompt)
        # What a model asks may be what a held-out prompt asks.
        elif split_of(one.messages, splits.dev, splits.test) != "train":
            self.rejected["held out"] += 1
            self._drop(one.id, ", held out", prompt)
        else:
            made[one.id] = one.model_copy(update={"round": self._settings.round})

    def _drop(self, row_id: str, reason: str, prompt: Prompt, **more: Any) -> None:
        self._out.drop(row_id, f"{self._capability}.{HOOK}{reason}", parents=[prompt.id], **more)


def _yielded(
    function: Callable[[Prompt, Handle], Iterable[Example | Rejected]],
    prompt: Prompt,
    capability: str,
    handle: Handle,
) -> list[MadeExample | Rejected]:
    """What a hook yields of a prompt, checked and with where it comes from."""
    found: list[MadeExample | Rejected] = []
    for one in function(prompt, handle):
        if isinstance(one, Rejected):
            found.append(one)
            continue
        if not isinstance(one, Example):
            raise TypeError(f"yielded {type(one).__name__}, expected an Example or Rejected")
        if one.capability != capability:
            raise ValueError(f"yielded an example of {one.capability}, expected {capability}")
        source = f"{capability}.{HOOK}"
        found.append(
            MadeExample.model_validate(
                one.to_json()
                | {
                    "parents": (prompt.id, *(p for p in one.parents if p != prompt.id)),
                    "source": f"{source}/{one.source}" if one.source else source,
                }
            )
        )
    return found
