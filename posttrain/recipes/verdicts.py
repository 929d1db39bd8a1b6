"""Calls the hooks that look at responses: verdicts and named measures.

Knows what to do when one misbehaves.

    verify_all(recipes, [(candidate, prompt)], handle, workers=2)
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from posttrain.errors import StepFailed
from posttrain.hooks import Verdict
from posttrain.recipes.handle import StepHandle
from posttrain.recipes.opened import Recipe
from posttrain.rows import Candidate, Prompt
from posttrain.workspace import blamed


def verify_all(
    recipes: Mapping[str, Recipe],
    pairs: Sequence[tuple[Candidate, Prompt]],
    handle: StepHandle,
    workers: int,
) -> list[Verdict | None]:
    """A verdict for each candidate, in order; None where nothing can be checked.

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
            verdict = hook(candidate, prompt, handle.of(recipes[prompt.capability]))
        if verdict is not None and not isinstance(verdict, Verdict):
            raise StepFailed(
                f"{where} answered {type(verdict).__name__}, expected a Verdict or None"
            )
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
                named = recipe.hooks["evaluate"](candidates, prompts, handle.of(recipe))
                measures[name] = {str(key): float(value) for key, value in named.items()}
    return measures
