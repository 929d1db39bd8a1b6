"""The steps of each round, in order: a plan turned into handles; nothing runs here.

Knows which step reads which, and that round N's result is round N+1's policy. Knows no stage's
code: functions are named as text.

    steps = plan_steps(workspace, "tiny", plan)
    [step.address for step in steps if step.round == 1]
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.settings.base import Settings
from posttrain.settings.plan import Plan, SimulatedAnnotator, SimulatedJudge, Source
from posttrain.settings.recipe import RecipeSettings
from posttrain.settings.stages import (
    CIRCUMSTANCES,
    AverageStage,
    CurateStage,
    DpoStage,
    GateStage,
    HumanStage,
    MeasureRewardStage,
    MeasureStage,
    PreferencesStage,
    PromptsStage,
    RewardStage,
    SampleStage,
    ScoreStage,
    SelectStage,
    SftStage,
    TasksStage,
    literals,
)
from posttrain.settings.training import TrainingSettings
from posttrain.steps.step import Choice, Step
from posttrain.workspace import (
    Workspace,
    find_recipe,
    load_pipeline,
    load_recipe_settings,
)

# Raised when a kind of step changes what it writes for the same settings.
VERSIONS = {
    "prompts": 1,
    "human": 1,
    "preferences": 1,
    "reward": 1,
    "sft": 1,
    "dpo": 1,
    "average": 1,
    "sample": 1,
    "score": 1,
    "select": 1,
    "curate": 1,
    "measure": 1,
    "measure_reward": 1,
    "gate": 1,
    "tasks": 1,
}


@dataclass
class _Builder:
    """Collects the steps of all rounds."""

    workspace: Workspace
    name: str
    plan: Plan
    recipes: dict[str, RecipeSettings]
    steps: dict[str, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        base = self.workspace.find(self.plan.base)
        self.base: dict[str, Path] = {"base": base}
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
            weights=stage in ("reward", "sft", "dpo", "average"),
            **parts,
        )
        self.steps[address] = step
        return step

    def hooks(self) -> dict[str, Path]:
        """Folders of the recipes a step reads: their hooks, templates and settings."""
        return {f"recipe:{name}": find_recipe(self.workspace, name).folder for name in self.recipes}

    def data(self, sources: tuple[Source, ...]) -> dict[str, Path]:
        """Files that sources name."""
        paths = [one.path for one in sources if one.type == "file"]
        return {f"data:{path}": self.workspace.find(path) for path in paths}

    def average(
        self, address: str, settings: TrainingSettings, members: Mapping[str, Step]
    ) -> Step:
        """The step that averages a stage's members."""
        weights = dict(settings.average.weights) if settings.average.method == "weighted" else None
        return self.add(
            address,
            "average",
            AverageStage(members=tuple(members), weights=weights),
            inputs={f"member:{name}": step for name, step in members.items()},
        )

    def measure(self, address: str, parts: Mapping[str, Any]) -> Step:
        """The step that measures a model on the held-out prompts."""
        plan = self.plan
        files = {**self.template, **self.hooks(), **parts.get("files", {})}
        inputs = {"heldout": self.steps["round-0/heldout"], **parts.get("inputs", {})}
        settings = MeasureStage(
            seed=plan.seed,
            evaluation=plan.evaluation,
            sampling=plan.sampling,
            recipes=self.recipes,
            mix=plan.mix,
        )
        return self.add(address, "measure", settings, inputs=inputs, files=files)


def plan_steps(workspace: Workspace, name: str, plan: Plan) -> dict[str, Step]:
    """Every step of every round by address, in the order they run.

    Raises:
        BadInput: a file, recipe or rule that the plan names is missing.
    """
    recipes = {
        capability: load_recipe_settings(workspace, capability, plan.recipes.get(capability, {}))
        for capability in plan.mix
    }
    builder = _Builder(workspace, name, plan, recipes)
    _bootstrap(builder)
    for number in range(1, len(plan.rounds) + 1):
        _round(builder, number)
    return builder.steps


def _bootstrap(b: _Builder) -> None:
    """Round 0: held-out prompts, the base's measure, and the first policy."""
    plan = b.plan
    sources = plan.evaluation.sources
    heldout = PromptsStage(
        round=0,
        seed=plan.seed,
        sources=sources,
        splits=plan.splits,
        held_out=True,
        recipes=b.recipes,
    )
    b.add(
        "round-0/heldout",
        "prompts",
        heldout,
        files={**b.base, **b.template, **b.data(sources), **b.hooks()},
    )
    b.measure("round-0/measure-base", {"files": {"model": b.base["base"]}})
    human = _human(b, 0, plan.bootstrap.human)
    first = next(iter(plan.sft.variants))
    policy = b.add(
        "round-0/bootstrap",
        "sft",
        SftStage(sft=plan.sft.variant(first)),
        inputs={"examples": human},
        files={**b.base, **b.template},
    )
    measured = b.measure("round-0/measure", {"inputs": {"model": policy}})
    gate = GateStage(round=0, gate=plan.gate, candidate=policy.address)
    b.add("round-0/gate", "gate", gate, inputs={"measure": measured, "candidate": policy})
    if plan.bootstrap.tasks and not plan.rounds[0].preferences:
        _tasks(b, 0, plan.bootstrap.tasks, policy, {})


def _human(b: _Builder, number: int, paths: tuple[str, ...]) -> Step:
    """The step that checks the human-written examples of a round."""
    human = {f"human:{path}": b.workspace.find(path) for path in paths}
    settings = HumanStage(splits=b.plan.splits)
    return b.add(f"round-{number}/human", "human", settings, files={**b.base, **human})


def _round(b: _Builder, number: int) -> None:
    plan, at = b.plan, f"round-{number}"
    data = plan.rounds[number - 1]
    before = b.steps[f"round-{number - 1}/gate"]
    # Round 0's gate has no choice to make, so its model is known before it runs.
    policy: dict[str, Any] = (
        {"inputs": {"policy": b.steps["round-0/bootstrap"]}}
        if number == 1
        else {"choices": {"policy": Choice(before)}}
    )
    _preferences(b, number)
    batches = {f"preferences:{n}": b.steps[f"round-{n}/preferences"] for n in range(1, number + 1)}
    reward = _reward(b, at, batches)
    prompts = b.add(
        f"{at}/prompts",
        "prompts",
        PromptsStage(
            round=number,
            seed=plan.seed,
            sources=data.prompts,
            splits=plan.splits,
            held_out=False,
            recipes=b.recipes,
        ),
        files={**b.base, **b.template, **b.data(data.prompts), **b.hooks()},
    )
    sample = b.add(
        f"{at}/sample",
        "sample",
        SampleStage(round=number, seed=plan.seed, sampling=plan.sampling, recipes=b.recipes),
        inputs={"prompts": prompts, **policy.get("inputs", {})},
        choices=policy.get("choices", {}),
        files={**b.template, **b.hooks()},
    )
    history = range(max(1, number - plan.selection.history), number)
    earlier = {f"select:{n}": b.steps[f"round-{n}/select"] for n in history}
    score = b.add(
        f"{at}/score",
        "score",
        ScoreStage(),
        inputs={"sample": sample, "reward": reward, **earlier},
        files=b.template,
    )
    judge = _rules("judge", b) if isinstance(plan.judge, SimulatedJudge) else {}
    select = b.add(
        f"{at}/select",
        "select",
        SelectStage(round=number, selection=plan.selection, recipes=b.recipes, judge=plan.judge),
        inputs={"prompts": prompts, "score": score},
        files={**judge, **b.hooks()},
    )
    curate = _curate(b, number, score, select)
    sft = _members(b, at, "sft", plan.sft, {"examples": curate}, b.base)
    dpo_inputs = {"preferences": b.steps[f"{at}/preferences"], "sft": sft}
    dpo = _members(b, at, "dpo", plan.dpo, dpo_inputs, {})
    measured = b.measure(f"{at}/measure", {"inputs": {"model": dpo}})
    b.add(
        f"{at}/gate",
        "gate",
        GateStage(round=number, gate=plan.gate, candidate=dpo.address),
        inputs={"measure": measured, "candidate": dpo, "before": before},
    )
    if number < len(plan.rounds) and not plan.rounds[number].preferences:
        _tasks(b, number, data.tasks, dpo, policy)


def _preferences(b: _Builder, number: int) -> None:
    plan, files = b.plan, dict(b.base)
    inputs: dict[str, Step] = {}
    awaited: frozenset[str] = frozenset()
    given = plan.rounds[number - 1].preferences
    files |= {f"preferences:{path}": b.workspace.find(path) for path in given}
    if not given:
        inputs["tasks"] = b.steps[f"round-{number - 1}/tasks"]
        if isinstance(plan.annotator, SimulatedAnnotator):
            files |= {**_rules("people", b), **b.hooks()}
        else:
            files["answers"] = b.workspace.answers(b.name, number - 1)
            awaited = frozenset({"answers"})
    settings = PreferencesStage(
        round=number,
        seed=plan.seed,
        annotator=plan.annotator,
        splits=plan.splits,
        max_similarity=plan.max_similarity,
        recipes=b.recipes,
    )
    address = f"round-{number}/preferences"
    b.add(address, "preferences", settings, inputs=inputs, files=files, awaited=awaited)


def _reward(b: _Builder, at: str, batches: Mapping[str, Step]) -> Step:
    plan = b.plan
    members = {
        name: b.add(
            f"{at}/rm-{name}",
            "reward",
            RewardStage(reward=plan.reward.variant(name), min_strength=plan.min_strength),
            inputs=dict(batches),
            files={**b.base, **b.template},
        )
        for name in plan.reward.variants
    }
    reward = b.average(f"{at}/rm", plan.reward, members)
    b.add(
        f"{at}/measure-rm",
        "measure_reward",
        MeasureRewardStage(),
        inputs={"reward": reward, **batches},
        files=b.template,
    )
    return reward


def _curate(b: _Builder, number: int, score: Step, select: Step) -> Step:
    plan = b.plan
    pipeline = load_pipeline(b.workspace, plan.pipeline)
    if plan.rounds[number - 1].human:
        _human(b, number, plan.rounds[number - 1].human)
    places = (f"round-{n}/human" for n in range(number + 1))
    human = {f"human:{place}": b.steps[place] for place in places if place in b.steps}
    rules = {"data_quality": b.workspace.find("data_quality")}
    return b.add(
        f"round-{number}/curate",
        "curate",
        CurateStage(round=number, seed=plan.seed, pipeline=pipeline, mix=plan.mix),
        inputs={"score": score, "select": select, "heldout": b.steps["round-0/heldout"], **human},
        files=rules,
    )


def _members(
    b: _Builder,
    at: str,
    stage: str,
    settings: TrainingSettings,
    inputs: Mapping[str, Step],
    files: Mapping[str, Path],
) -> Step:
    """The variants of SFT or DPO, and their average."""
    members = {}
    for name in settings.variants:
        one: Settings
        if stage == "sft":
            one = SftStage.model_validate({"sft": settings.variant(name)})
        else:
            one = DpoStage.model_validate(
                {"dpo": settings.variant(name), "min_strength": b.plan.min_strength}
            )
        members[name] = b.add(
            f"{at}/{stage}-{name}", stage, one, inputs=dict(inputs), files={**files, **b.template}
        )
    return b.average(f"{at}/{stage}", settings, members)


def _tasks(
    b: _Builder, number: int, sources: tuple[Source, ...], policy: Step, before: Mapping[str, Any]
) -> None:
    """Tasks for the next round; in round 0 the base is the other model."""
    plan, at = b.plan, f"round-{number}"
    tasks, variants = plan.tasks, {}
    files = {**b.base, **b.template, **b.data(sources), **b.hooks()}
    inputs = {"policy": policy}
    if number == 0:
        tasks = tasks.model_copy(update={"models": ("previous",)})
        files["previous"] = b.base["base"]
    else:
        variants = {f"variant:{n}": b.steps[f"{at}/dpo-{n}"] for n in plan.dpo.variants}
        inputs |= {"previous": before["inputs"]["policy"]} if "inputs" in before else {}
    choices = {"previous": before["choices"]["policy"]} if "choices" in before else {}
    settings = TasksStage(
        round=number,
        seed=plan.seed,
        sources=sources,
        splits=plan.splits,
        tasks=tasks,
        sampling=plan.sampling,
        recipes=b.recipes,
    )
    b.add(
        f"{at}/tasks",
        "tasks",
        settings,
        inputs={**inputs, **variants},
        choices=choices,
        files=files,
    )


def _rules(name: str, b: _Builder) -> dict[str, Path]:
    """The rules file of simulated people or of a simulated judge."""
    owner = b.plan.annotator if name == "people" else b.plan.judge
    assert isinstance(owner, SimulatedAnnotator | SimulatedJudge)
    return {name: b.workspace.find(owner.rules)}
