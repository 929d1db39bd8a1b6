"""Recipes at work: their settings and hooks, the handle hooks get, verdicts and measures.

Knows how to call a hook and what to do when it misbehaves. Finding recipe folders is
`posttrain.workspace`'s affair.

    recipes = open_recipes(workspace, {"math": settings})
    verdicts = verify_all(recipes, pairs, handle, workers=2)
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from posttrain.errors import BadInput, StepFailed
from posttrain.generation import Engine, Request
from posttrain.hooks import HOOK_NAMES, Grade, Passage, RunResult, Verdict
from posttrain.rows import Candidate, Message, Prompt, prompt_hash, stable_seed
from posttrain.sandbox import Sandbox
from posttrain.settings.engines import SandboxLimits
from posttrain.settings.recipe import RecipeSettings
from posttrain.workspace import Workspace, blamed, find_recipe, load_functions


@dataclass(frozen=True)
class Recipe:
    """A capability's settings and the hooks it uses."""

    settings: RecipeSettings
    hooks: Mapping[str, Callable[..., Any]]


@dataclass
class StepHandle:
    """The handle of one step: it offers what the step has, and says so of what it has not."""

    limits: SandboxLimits
    seed: int
    engine: Engine | None = None

    @cached_property
    def sandbox(self) -> Sandbox:
        """Opened at the first program, so that recipes without code need no bubblewrap."""
        return Sandbox(self.limits)

    def generate(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
        json_schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """N responses of the step's model.

        Raises:
            BadInput: the step has no engine.
        """
        if self.engine is None:
            raise BadInput("handle.generate: this step runs no engine")
        turns = tuple(messages)
        request = Request(
            id=prompt_hash(turns),
            messages=turns,
            n=n,
            seed=stable_seed(self.seed, prompt_hash(turns)),
            temperature=temperature,
            max_tokens=max_tokens or 512,
            stop=tuple(stop),
            choices=tuple(choices),
            json_schema=dict(json_schema) if json_schema is not None else None,
        )
        return [sample.text for sample in self.engine.generate([request])[0]]

    def judge(self, rubric: str, variables: Mapping[str, Any]) -> Grade | None:
        """No step of this version gives hooks a judge model."""
        raise BadInput(f"handle.judge({rubric}): this step has no judge model")

    def run_code(self, source: str, *, stdin: str = "", seconds: float | None = None) -> RunResult:
        """Run a Python program in the sandbox."""
        return self.sandbox.run(source, stdin=stdin, seconds=seconds)

    def retrieve(self, corpus: str, query: str, k: int = 4) -> list[Passage]:
        """No step of this version names a corpus."""
        raise BadInput(f"handle.retrieve({corpus}): this step names no corpus")

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """No step of this version gives hooks an embedder."""
        raise BadInput(f"handle.embed({len(texts)} texts): this step has no embedder")


def open_recipes(workspace: Workspace, settings: Mapping[str, RecipeSettings]) -> dict[str, Recipe]:
    """Load the hooks that each recipe says it uses.

    Raises:
        BadInput: a hook is named but not defined, or its file cannot be loaded.
    """
    opened = {}
    for name, one in settings.items():
        path = find_recipe(workspace, name).folder / "hooks.py"
        functions = load_functions(path) if one.hooks else {}
        missing = [hook for hook in one.hooks if hook not in functions]
        if missing:
            known = [hook for hook in HOOK_NAMES if hook in functions]
            raise BadInput(f"recipe {name}: hooks.py defines no {missing[0]}(); it defines {known}")
        opened[name] = Recipe(one, {hook: functions[hook] for hook in one.hooks})
    return opened


def verify_all(
    recipes: Mapping[str, Recipe],
    pairs: Sequence[tuple[Candidate, Prompt]],
    handle: StepHandle,
    workers: int,
) -> list[Verdict | None]:
    """A verdict for each candidate, in order; None where the recipe has no verifier.

    Raises:
        StepFailed: a verifier raised or answered with something that is no verdict, naming
            recipe, hook and row.
    """

    def verify(pair: tuple[Candidate, Prompt]) -> Verdict | None:
        candidate, prompt = pair
        hook = recipes[prompt.capability].hooks.get("verify")
        if hook is None:
            return None
        where = f"recipe {prompt.capability}: verify() of row {candidate.id}"
        with blamed(where):
            verdict = hook(candidate, prompt, handle)
        if not isinstance(verdict, Verdict):
            raise StepFailed(f"{where} answered {type(verdict).__name__}, expected a Verdict")
        return verdict

    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(verify, pairs))


def evaluate_all(
    recipes: Mapping[str, Recipe],
    pairs: Sequence[tuple[Candidate, Prompt]],
    handle: StepHandle,
) -> dict[str, dict[str, float]]:
    """Capability → the named measures that its `evaluate` hook made of held-out responses."""
    measures = {}
    for name, recipe in recipes.items():
        mine = [pair for pair in pairs if pair[1].capability == name]
        if "evaluate" in recipe.hooks and mine:
            candidates, prompts = zip(*mine, strict=True)
            with blamed(f"recipe {name}: evaluate()"):
                named = recipe.hooks["evaluate"](candidates, prompts, handle)
                measures[name] = {str(key): float(value) for key, value in named.items()}
    return measures
