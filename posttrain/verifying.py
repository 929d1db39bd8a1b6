"""Verdicts on responses, remembered beside a run, so that a program is run once for all steps.

Knows what a verdict depends on: the recipe's folder, the sandbox's limits, and what a hook sees of
a response and its prompt. What is remembered decides nothing but time: no step's identity holds it.

    verifier = verifier_of(inputs, settings.recipes)
    verdicts = verifier.verify(pairs)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.hooks import Verdict
from posttrain.recipes import StepHandle, open_recipes, verify_all
from posttrain.rows import Candidate, Prompt, content_id
from posttrain.settings.engines import SandboxLimits
from posttrain.settings.recipe import RecipeSettings
from posttrain.steps.fingerprint import ContentHashes
from posttrain.steps.output import Inputs
from posttrain.tables import json_lines, write_rows
from posttrain.workspace import Workspace, find_recipe

VERDICTS = ".verdicts"
"""Folder of a run in which verdicts are remembered."""

Pair = tuple[Candidate, Prompt]


class Verifier:
    """The verifiers of some recipes."""

    def __init__(
        self,
        workspace: Workspace,
        recipes: Mapping[str, RecipeSettings],
        limits: SandboxLimits,
        workers: int,
        folder: Path,
    ) -> None:
        """Load the hooks, and what is remembered.

        Args:
            workspace: Where recipes are found.
            recipes: Those whose responses will come.
            limits: Of the sandbox.
            workers: Verifiers at work side by side.
            folder: Where verdicts are remembered.

        Raises:
            BadInput: a hook is named but not defined, or its file cannot be loaded.
        """
        self._recipes = open_recipes(workspace, recipes)
        self._handle = StepHandle(limits, 0)
        self._workers, self._folder = workers, folder
        hashes = ContentHashes(folder / "hashes.json")
        self._about = {
            name: [
                hashes.of(find_recipe(workspace, name).folder),
                limits.model_dump(mode="json"),
                recipe.settings.options,
            ]
            for name, recipe in self._recipes.items()
            if "verify" in recipe.hooks
        }
        files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
        self._known = {row["key"]: row["verdict"] for file in files for row in json_lines(file)}

    def verify(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """A verdict for each response, in order; None where the recipe has no verifier.

        Raises:
            StepFailed: a verifier raised, or answered with something that is no verdict.
        """
        # A plan may leave a recipe's verifier out: what was remembered with it says nothing then.
        keys = [self._key(*pair) if pair[1].capability in self._about else None for pair in pairs]
        fresh = {
            key: pair
            for key, pair in zip(keys, pairs, strict=True)
            if key is not None and key not in self._known
        }
        if fresh:
            verdicts = verify_all(self._recipes, list(fresh.values()), self._handle, self._workers)
            found = {
                key: [one.passed, one.evidence]
                for key, one in zip(fresh, verdicts, strict=True)
                if one is not None
            }
            self._known |= found
            write_rows(
                self._folder / f"{content_id(list(found))}.jsonl",
                ({"key": key, "verdict": verdict} for key, verdict in found.items()),
            )
        known = [None if key is None else self._known.get(key) for key in keys]
        return [None if one is None else Verdict(*one) for one in known]

    def _key(self, row: Candidate, prompt: Prompt) -> str:
        seen = row.model_dump(mode="json", include={"messages", "tools", "finish_reason"})
        return content_id([self._about[prompt.capability], seen, prompt.to_json()])

    def passed(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether each response passes; one without a verifier does not."""
        return [verdict is not None and verdict.passed for verdict in self.verify(pairs)]


def verifier_of(inputs: Inputs, recipes: Mapping[str, RecipeSettings]) -> Verifier:
    """The verifiers of a step, with what all steps of its run remember."""
    resources = inputs.resources
    return Verifier(
        inputs.workspace,
        recipes,
        resources.sandbox,
        resources.sandbox_workers,
        inputs.machine.parent / VERDICTS,
    )
