"""Collects the steps of a run, and knows what several kinds of them have in common.

Knows files, recipes and versions; the order of a round is `posttrain.planning.rounds`'s.

    builder = Builder(workspace, "tiny", plan, recipes)
    builder.add("round-1/gate", "gate", settings, inputs={"measure": measured})
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput
from posttrain.settings.base import Settings
from posttrain.settings.plan import Plan
from posttrain.settings.recipe import ExpertPolicy, ModelPolicy, RecipeSettings
from posttrain.settings.sources import STDLIB, Source
from posttrain.settings.stages import (
    CIRCUMSTANCES,
    AverageStage,
    HarnessStage,
    MeasureMembersStage,
    MeasureStage,
    SoupStage,
    literals,
)
from posttrain.settings.training import StageTraining
from posttrain.steps.step import Step
from posttrain.workspace import (
    Workspace,
    find_recipe,
    load_pipeline,
)

# Raised when a kind of step changes what it writes for the same settings.
VERSIONS = {
    "prompts": 1,
    "human": 1,
    "preferences": 4,
    "reward": 2,
    "pretrain": 1,
    "sft": 2,
    "dpo": 2,
    "average": 1,
    "soup": 1,
    "sample": 2,
    "score": 2,
    "select": 3,
    "revise": 1,
    "synthesize": 1,
    "grade": 1,
    "curate": 2,
    "measure": 1,
    "harness": 1,
    "measure_members": 1,
    "measure_reward": 2,
    "dials": 1,
    "gate": 2,
    "tasks": 4,
    "label": 1,
}

PREVIOUS = "previous"
"""Name of the member that the round before has made."""


@dataclass
class Builder:
    """Collects the steps of all rounds."""

    workspace: Workspace
    name: str
    plan: Plan
    recipes: dict[str, RecipeSettings]
    steps: dict[str, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        base = self.workspace.find(self.plan.base)
        self.base: dict[str, Path] = {"base": base}
        self.pipeline = load_pipeline(self.workspace, self.plan.pipeline)
        self.template: dict[str, Path] = {}
        if self.plan.chat.template:
            self.template["template"] = self.workspace.find(self.plan.chat.template)

    def add(self, address: str, stage: str, settings: Settings, **parts: Any) -> Step:
        """Make a step and remember it."""
        step = Step(
            address=address,
            function=f"posttrain.stages.{stage}:run",
            version=VERSIONS[stage],
            settings=literals(settings),
            circumstances=CIRCUMSTANCES,
            weights=stage in ("pretrain", "reward", "sft", "dpo", "average", "soup"),
            **parts,
        )
        self.steps[address] = step
        return step

    def hooks(self) -> dict[str, Path]:
        """Folders of the recipes a step reads: their hooks and templates."""
        return {f"recipe:{name}": find_recipe(self.workspace, name).folder for name in self.recipes}

    def steering(self) -> dict[str, Path]:
        """Folders of the recipes' prompts, where a recipe steers."""
        return {
            f"steering:{name}": find_recipe(self.workspace, name).folder / "prompts"
            for name, one in self.recipes.items()
            if one.system_prompts
        }

    def sources(self, sources: tuple[Source, ...], kind: str = "data") -> dict[str, Path]:
        """What the prompts of sources are made of: files by their place in the list, recipes.

        Recipes' code is read only where a hook makes prompts.
        """
        files = {
            f"{kind}:{place}": self.workspace.find(one.path)
            for place, one in enumerate(sources)
            if one.type != "hook" and one.path != STDLIB
        }
        made = any(one.type == "hook" for one in sources)
        return {**files, **(self.hooks() if made else self.steering())}

    def round_sources(self, number: int) -> tuple[Source, ...]:
        """Where a round's prompts come from: what the plan names, else what its recipes do.

        Raises:
            BadInput: neither names any.
        """
        named = self.plan.rounds[number - 1].prompts
        found = named or tuple(one for recipe in self.recipes.values() for one in recipe.sources)
        if not found:
            raise BadInput(
                f"rounds.{number - 1}.prompts: name some, or give a recipe `sources` of its own"
            )
        return found

    def seeds(self) -> tuple[Source, ...]:
        """What the recipes that synthesize start from."""
        makers = (one for one in self.recipes.values() if "synthesize" in one.hooks)
        return tuple(seed for one in makers for seed in one.seeds)

    def files(self, kind: str, paths: Sequence[str]) -> dict[str, Path]:
        """Files by kind and place, so that where they lie is no part of a step's identity."""
        return {f"{kind}:{i:03}": self.workspace.find(path) for i, path in enumerate(paths)}

    def embedder(self) -> dict[str, Path]:
        """The folder of the pipeline's embedder, where it is not the one that comes with us."""
        name = self.pipeline.dedup.embedder
        return {} if name == "minilm" else {"embedder": self.workspace.find(name)}

    def recipes_with(self, *keys: str) -> dict[str, RecipeSettings]:
        """The recipes as a step sees them that reads these keys alone.

        What a step does not read must not make it stale. Hooks read their recipe's own settings.
        """
        own = ("options",) if "hooks" in keys else ()
        return {
            name: RecipeSettings.model_validate(
                one.model_dump(include={"name", *keys, *own}, exclude_unset=False)
            )
            for name, one in self.recipes.items()
        }

    def recipes_in_round(self, number: int, *keys: str) -> dict[str, RecipeSettings]:
        """The same as they hold in a round: what changes from round to round has its value."""
        last = len(self.plan.rounds)
        return {
            name: one.in_round(number, last)
            for name, one in self.recipes_with("temperature_in_round", *keys).items()
        }

    def experts(self) -> dict[str, Path]:
        """Model folders that recipes sample from in place of the round's own policy."""
        return {
            f"expert:{name}": self.workspace.find(one.policy.model)
            for name, one in self.recipes.items()
            if isinstance(one.policy, ModelPolicy)
        }

    def trained_experts(self) -> dict[str, Step]:
        """The plan's experts, by the recipes that sample from them.

        Raises:
            BadInput: a recipe names an expert that the plan does not train.
        """
        found: dict[str, Step] = {}
        for name, one in self.recipes.items():
            if isinstance(one.policy, ExpertPolicy):
                if one.policy.expert not in self.plan.experts:
                    raise BadInput(
                        f"recipes.{name}.policy.expert: {one.policy.expert} is none of the plan's "
                        f"experts, which are {sorted(self.plan.experts) or 'none'}"
                    )
                found[f"expert:{name}"] = self.steps[f"round-0/expert-{one.policy.expert}"]
        return found

    def average(self, address: str, settings: StageTraining, members: Mapping[str, Step]) -> Step:
        """The step that averages a stage's members, if wanted with what it made a round before."""
        average = settings.average
        if average.method == "greedy":
            return self._soup(address, members)
        weights = dict(average.weights) if average.method == "weighted" else None
        at, _, stage = address.partition("/")
        before = self.steps.get(f"round-{int(at.removeprefix('round-')) - 1}/{stage}")
        if average.previous and before is not None:
            shares = weights or dict.fromkeys(members, 1.0)
            whole = sum(shares.values()) / (1 - average.previous)
            weights = {name: share / whole for name, share in shares.items()}
            weights[PREVIOUS] = average.previous
            members = {**members, PREVIOUS: before}
        return self.add(
            address,
            "average",
            AverageStage(members=tuple(members), weights=weights),
            inputs={f"member:{name}": step for name, step in members.items()},
        )

    def _soup(self, address: str, members: Mapping[str, Step]) -> Step:
        """The step that averages those members which measure best together on dev."""
        return self.add(
            address,
            "soup",
            SoupStage(**dict(self._measured()), members=tuple(members)),
            inputs={
                "heldout": self.steps["round-0/heldout"],
                **{f"member:{name}": step for name, step in members.items()},
            },
            files={**self.template, **self.hooks()},
        )

    def measure(self, address: str, parts: Mapping[str, Any]) -> Step:
        """The step that measures a model on the held-out prompts."""
        files = {**self.template, **self.hooks(), **parts.get("files", {})}
        inputs = {"heldout": self.steps["round-0/heldout"], **parts.get("inputs", {})}
        return self.add(address, "measure", self._measured(), inputs=inputs, files=files)

    def harness(self, address: str, parts: Mapping[str, Any]) -> None:
        """The step that runs tasks of lm-evaluation-harness, where recipes name some."""
        tasks = {name: one.harness for name, one in self.recipes.items() if one.harness}
        if tasks:
            own = {f"tasks:{n}": find_recipe(self.workspace, n).folder / "tasks" for n in tasks}
            files = {name: folder for name, folder in own.items() if folder.is_dir()}
            settings = HarnessStage(
                seed=self.plan.seed, harness=self.plan.evaluation.harness, tasks=tasks
            )
            files |= parts.get("files", {})
            self.add(address, "harness", settings, inputs=parts.get("inputs", {}), files=files)

    def measure_members(self, at: str, members: Mapping[str, Step]) -> Step:
        """The step that measures variants and averages, by name."""
        return self.add(
            f"{at}/measure-members",
            "measure_members",
            MeasureMembersStage(**dict(self._measured()), models=tuple(members)),
            inputs={
                "heldout": self.steps["round-0/heldout"],
                **{f"model:{name}": step for name, step in members.items()},
            },
            files={**self.template, **self.hooks()},
        )

    def _measured(self) -> MeasureStage:
        return MeasureStage(
            seed=self.plan.seed,
            evaluation=self.plan.evaluation,
            sampling=self.plan.sampling,
            recipes=self.recipes_with("max_tokens", "hooks"),
            mix=self.plan.mix,
        )
