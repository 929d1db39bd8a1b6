"""Tries a recipe on a handful of prompts and keeps every step's rows: `posttrain recipes test`.

The same hooks, handle and batches as in a round; the model is a folder, or a transcript in which an
earlier trial recorded what was asked and answered.

    trial = try_recipe(workspace, "math", TrialSettings(model=Path("rounds/tiny/base")))
    trial["verify"]
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput
from posttrain.hook_rows import HookRows
from posttrain.hooks import Grade, Handle, PromptRequest, Rejected, Verdict
from posttrain.recipes import StepHandle, evaluate_all, verify_all
from posttrain.recipes.texts import drawn, standard_library
from posttrain.rows import Candidate, Example, Message, Prompt
from posttrain.settings.resources import Resources
from posttrain.settings.sources import STDLIB, FileSource, HookSource, Source, TextSource
from posttrain.settings.stages import HookStage
from posttrain.settings.trial_options import TrialSettings
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_table
from posttrain.workspace import Workspace, blamed, load_pipeline, load_recipe_settings

Rows = list[dict[str, Any]]


def try_recipe(workspace: Workspace, name: str, settings: TrialSettings) -> dict[str, Rows]:
    """Rows by step: prompts, sample, verify, revise, judge, seeds, synthesize, evaluate; those the
    recipe has.

    A row that failed has `problem`.

    Raises:
        BadInput: no such recipe, model or transcript, or no prompt to try it on.
    """
    # A handful of rows says nothing about shares: all are tried.
    recipe = load_recipe_settings(workspace, name, {**settings.overrides, "max_failed": 1.0})
    stage = HookStage(
        round=1,
        seed=settings.seed,
        sampling=settings.sampling,
        judge=settings.judge,
        embedder=load_pipeline(workspace, {}).dedup.embedder,
        recipes={name: recipe},
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        paths = {f"corpus:{name}:{one}": workspace.find(at) for one, at in recipe.corpora.items()}
        if settings.model is not None:
            paths["policy"] = settings.model
        inputs = Inputs(paths, workspace, Resources(), work / "machine.json")
        out = Output(work / "trial", lambda done, total: None)
        with closing(
            HookRows(inputs, stage, out, settings.transcript, settings.model is None)
        ) as hooks:
            return _Trial(workspace, hooks, name, settings).steps()


class _Trial:
    """One recipe's steps, one after another."""

    def __init__(
        self, workspace: Workspace, hooks: HookRows, name: str, settings: TrialSettings
    ) -> None:
        self._workspace, self._hooks = workspace, hooks
        self._name, self._settings = name, settings
        self._recipe = hooks.recipes[name]
        limits = Resources().sandbox
        self._plain = StepHandle(limits, settings.seed).of(self._recipe)

    def steps(self) -> dict[str, Rows]:
        prompts = self._prompts()
        shown = {"prompts": [one.to_json() for one in prompts]}
        candidates = self._sampled(prompts, shown)
        pairs = [(one, _prompt_of(one, prompts)) for one in candidates]
        if "verify" in self._recipe.hooks:
            verdicts = self._verified(pairs, shown)
            if "revise" in self._recipe.hooks:
                failed = [
                    (*pair, verdict)
                    for pair, verdict in zip(pairs, verdicts, strict=True)
                    if verdict is not None and not verdict.passed
                ]
                self._made("revise", [(c.id, (c, p, v)) for c, p, v in failed], shown)
        if "judge" in self._recipe.hooks:
            self._made("judge", [(one.id, (one, prompt)) for one, prompt in pairs], shown)
        if "synthesize" in self._recipe.hooks:
            seeds = self._seeds(shown) or prompts
            self._made("synthesize", [(one.id, (one,)) for one in seeds], shown)
        measures = evaluate_all({self._name: self._recipe}, pairs, self._plain)
        if measures:
            shown["evaluate"] = [measures[self._name]]
        return shown

    def _prompts(self) -> list[Prompt]:
        settings = self._settings
        if settings.prompts is not None:
            table = read_table(settings.prompts, Prompt)
            table.check_share(0.0, "fix them")
            found = [one for one in table.rows if one.capability == self._name]
        elif "prompts" in self._recipe.hooks:
            request = PromptRequest(settings.num, settings.seed, 1, settings.options)
            with blamed(f"recipe {self._name}: prompts()"):
                found = list(self._recipe.hooks["prompts"](request, self._plain))
        else:
            raise BadInput(f"recipe {self._name} makes no prompts; give some with --prompts FILE")
        if not found:
            raise BadInput(f"no prompt of capability {self._name} to try it on")
        return found[: settings.num]

    def _seeds(self, shown: dict[str, Rows]) -> list[Prompt]:
        """What `synthesize` starts from, where that is no prompt."""
        found: list[Prompt] = []
        for source in self._recipe.settings.seeds if self._settings.prompts is None else ():
            few = source if isinstance(source, FileSource) else _fewer(source, self._settings.num)
            found += self._read(few)
        if found:
            shown["seeds"] = [one.to_json() for one in found[: self._settings.num]]
        return found[: self._settings.num]

    def _read(self, source: Source) -> list[Prompt]:
        if isinstance(source, HookSource):
            request = PromptRequest(source.num, self._settings.seed, 1, source.options)
            with blamed(f"recipe {self._name}: prompts()"):
                return list(self._recipe.hooks["prompts"](request, self._plain))
        library = source.path == STDLIB
        path = standard_library() if library else self._workspace.find(source.path)
        if isinstance(source, TextSource):
            return drawn(source, path, self._settings.seed)
        table = read_table(path, Prompt)
        table.check_share(0.0, "fix them")
        return [row for row in table.rows if row.capability == self._name]

    def _sampled(self, prompts: Sequence[Prompt], shown: dict[str, Rows]) -> list[Candidate]:
        """Some responses to each prompt, as rejection sampling would draw them."""
        recipe = self._recipe.settings
        num = min(recipe.k, self._settings.k)
        found: list[Candidate] = []
        if not num:
            return found
        shown["sample"] = []

        def sample(prompt: Prompt, handle: Handle) -> list[Any]:
            tools = prompt.tools or ()
            return handle.generate(prompt.prompt, n=num, max_tokens=recipe.max_tokens, tools=tools)

        tasks = [(one.id, partial(sample, one)) for one in prompts]
        for outcome, prompt in zip(
            self._hooks.run(self._name, "sample", tasks), prompts, strict=False
        ):
            if outcome.value is None:
                shown["sample"].append({"id": prompt.id, "problem": outcome.problem})
                continue
            for number, reply in enumerate(outcome.value):
                row = _candidate(prompt, number, reply)
                shown["sample"].append(
                    {"id": row.id, "text": str(reply), "finished": reply.finished}
                )
                if reply.strip():
                    found.append(row)
        return found

    def _verified(
        self, pairs: Sequence[tuple[Candidate, Prompt]], shown: dict[str, Rows]
    ) -> list[Verdict | None]:
        recipes = {self._name: self._recipe}
        verdicts = verify_all(recipes, pairs, self._plain, 2)
        shown["verify"] = [
            {"id": candidate.id, "passed": verdict.passed, "evidence": verdict.evidence}
            if verdict is not None
            else {"id": candidate.id, "passed": None, "evidence": "nothing to check it by"}
            for (candidate, _), verdict in zip(pairs, verdicts, strict=True)
        ]
        return verdicts

    def _made(
        self, hook: str, rows: Sequence[tuple[str, tuple[Any, ...]]], shown: dict[str, Rows]
    ) -> None:
        """What a hook makes of rows."""
        function: Callable[..., Any] = self._recipe.hooks[hook]

        def call(arguments: tuple[Any, ...], handle: Handle) -> list[Any]:
            made = function(*arguments, handle)
            return list(made) if hook == "synthesize" else [made]

        tasks = [(row_id, partial(call, arguments)) for row_id, arguments in rows]
        shown[hook] = []
        for outcome, (row_id, _) in zip(
            self._hooks.run(self._name, hook, tasks), rows, strict=False
        ):
            if outcome.value is None:
                shown[hook].append({"id": row_id, "problem": outcome.problem})
                continue
            for one in outcome.value:
                what = {"text": one} if hook == "revise" else _shown(one)
                shown[hook].append({"id": row_id, **what})


def _shown(row: Any) -> dict[str, Any]:
    """An example, what was thrown away, a grade, or what was yielded in their place."""
    if isinstance(row, Example):
        return {"example": row.to_json()}
    if isinstance(row, Rejected):
        return {"rejected": row.reason, "detail": row.detail}
    if row is None or isinstance(row, Grade):
        return {"grade": None if row is None else [row.score, row.maximum]}
    return {"problem": f"yielded {type(row).__name__}, expected an Example"}


def _fewer(source: HookSource | TextSource, num: int) -> HookSource | TextSource:
    return source.model_copy(update={"num": min(num, source.num)})


def _prompt_of(candidate: Candidate, prompts: Sequence[Prompt]) -> Prompt:
    return next(one for one in prompts if one.id == candidate.prompt_id)


def _candidate(prompt: Prompt, number: int, reply: Any) -> Candidate:
    return Candidate(
        id=f"{prompt.id}/{number}",
        prompt_id=prompt.id,
        messages=(*prompt.prompt, Message(role="assistant", content=str(reply) or " ")),
        tools=prompt.tools,
        seed=0,
        finish_reason="stop" if reply.finished else "length",
        num_tokens=0,
        model="trial",
        capability=prompt.capability,
    )
