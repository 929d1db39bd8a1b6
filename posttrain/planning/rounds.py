"""The steps of each round, in order: a plan turned into handles; nothing runs here.

Knows which step reads which, and that round N's result is round N+1's policy. Knows no stage's
code: functions are named as text.

    steps = plan_steps(workspace, "tiny", plan)
    [step.address for step in steps.values() if step.round == 1]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.planning.builder import Builder
from posttrain.settings.base import Settings
from posttrain.settings.plan import Plan, SimulatedAnnotator, SimulatedJudge, Source
from posttrain.settings.stages import (
    CurateStage,
    DpoStage,
    GateStage,
    HumanStage,
    MeasureRewardStage,
    PreferencesStage,
    PromptsStage,
    RewardStage,
    SampleStage,
    ScoreStage,
    SelectStage,
    SftStage,
    TasksStage,
)
from posttrain.settings.training import TrainingSettings
from posttrain.steps.step import Choice, Step
from posttrain.workspace import (
    Workspace,
    load_recipe_settings,
)


def plan_steps(workspace: Workspace, name: str, plan: Plan) -> dict[str, Step]:
    """Every step of every round by address, in the order they run.

    Raises:
        BadInput: a file, recipe or rule that the plan names is missing.
    """
    recipes = {
        capability: load_recipe_settings(workspace, capability, plan.recipes.get(capability, {}))
        for capability in plan.mix
    }
    builder = Builder(workspace, name, plan, recipes)
    _bootstrap(builder)
    for number in range(1, len(plan.rounds) + 1):
        _round(builder, number)
    return builder.steps


def _bootstrap(b: Builder) -> None:
    """Round 0: held-out prompts, the base's measure, and the first policy."""
    plan = b.plan
    sources = plan.evaluation.sources
    heldout = PromptsStage(
        round=0,
        seed=plan.seed,
        sources=sources,
        splits=plan.splits,
        held_out=True,
        max_context=_max_context(plan),
        recipes=b.recipes_with("max_tokens", "system_prompts", "hooks"),
    )
    b.add(
        "round-0/heldout",
        "prompts",
        heldout,
        files={**b.base, **b.template, **b.sources(sources)},
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
    gate = GateStage(
        round=0, gate=plan.gate, candidate=policy.address, capabilities=tuple(plan.mix)
    )
    b.add("round-0/gate", "gate", gate, inputs={"measure": measured, "candidate": policy})
    if plan.bootstrap.tasks and not plan.rounds[0].preferences:
        _tasks(b, 0, plan.bootstrap.tasks, policy, {})


def _max_context(plan: Plan) -> int | None:
    """Tokens that the sampling engine takes at most, where it is told."""
    engine = plan.sampling.engine
    return None if engine.type == "transformers" else engine.max_model_len


def _human(b: Builder, number: int, paths: tuple[str, ...]) -> Step:
    """The step that checks the human-written examples of a round."""
    return b.add(
        f"round-{number}/human",
        "human",
        HumanStage(splits=b.plan.splits, decontaminate=b.pipeline.decontaminate),
        inputs={"heldout": b.steps["round-0/heldout"]},
        files={**b.base, **b.files("human", paths)},
    )


def _round(b: Builder, number: int) -> None:
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
    score, select = _rejection_sampled(b, number, reward, policy)
    curate = _curate(b, number, score, select)
    sft = _members(b, at, "sft", plan.sft, {"examples": curate}, b.base)
    last = sft
    if plan.dpo.enabled:
        dpo_inputs = {"preferences": b.steps[f"{at}/preferences"], "sft": sft}
        if plan.selection.synthetic_pairs is not None:
            dpo_inputs["select"] = select
        last = _members(b, at, "dpo", plan.dpo, dpo_inputs, {})
    measured = b.measure(f"{at}/measure", {"inputs": {"model": last}})
    if plan.evaluation.members:
        b.measure_members(at, _trained(b, at))
    b.add(
        f"{at}/gate",
        "gate",
        GateStage(
            round=number,
            gate=plan.gate,
            candidate=last.address,
            capabilities=tuple(plan.mix),
        ),
        inputs={"measure": measured, "candidate": last, "before": before},
    )
    if number < len(plan.rounds) and not plan.rounds[number].preferences:
        _tasks(b, number, data.tasks, last, policy)


def _rejection_sampled(
    b: Builder, number: int, reward: Step, policy: Mapping[str, Any]
) -> tuple[Step, Step]:
    """The steps that score a round's responses and choose among them (section 4.2.2)."""
    plan, at = b.plan, f"round-{number}"
    sources, selection = plan.rounds[number - 1].prompts, plan.selection
    by = {"reward": reward}
    if selection.ensemble != "none":
        by = {f"member:rm-{name}": b.steps[f"{at}/rm-{name}"] for name in plan.reward.variants}
    prompts = b.add(
        f"{at}/prompts",
        "prompts",
        PromptsStage(
            round=number,
            seed=plan.seed,
            sources=sources,
            splits=plan.splits,
            held_out=False,
            max_context=_max_context(plan),
            recipes=b.recipes_with("max_tokens", "system_prompts", "hooks"),
        ),
        files={**b.base, **b.template, **b.sources(sources)},
    )
    sample = _sample(b, number, prompts, reward, policy)
    history = range(max(1, number - selection.history), number)
    earlier = {f"select:{n}": b.steps[f"round-{n}/select"] for n in history}
    score = b.add(
        f"{at}/score",
        "score",
        ScoreStage(
            ensemble=selection.ensemble != "none",
            penalty=selection.penalty if selection.ensemble == "lower" else 0.0,
            scoring=plan.scoring,
        ),
        inputs={"sample": sample, **by, **earlier},
        files=b.template,
    )
    judge = _rules("judge", b) if isinstance(plan.judge, SimulatedJudge) else {}
    select = b.add(
        f"{at}/select",
        "select",
        SelectStage(
            round=number,
            selection=selection,
            recipes=b.recipes_with("hooks", "answer_in", "languages", "train_on_steering"),
            judge=plan.judge,
        ),
        inputs={"prompts": prompts, "score": score},
        files={**judge, **b.hooks()},
    )
    return score, select


def _sample(
    b: Builder, number: int, prompts: Step, reward: Step, policy: Mapping[str, Any]
) -> Step:
    """The step that samples; what a response must pass is its affair only where K is adaptive."""
    plan = b.plan
    adaptive = plan.sampling.adaptive
    keys = ["k", "temperature", "max_tokens", "system_prompts"]
    if adaptive is not None:
        keys += ["hooks", "answer_in", "languages"]
    scores = adaptive is not None and adaptive.target is not None
    return b.add(
        f"round-{number}/sample",
        "sample",
        SampleStage(
            round=number,
            seed=plan.seed,
            sampling=plan.sampling,
            recipes=b.recipes_in_round(number, *keys),
            selection=None if adaptive is None else plan.selection,
            verify_ahead=b.recipes_with("hooks") if adaptive is None else {},
        ),
        inputs={
            "prompts": prompts,
            **policy.get("inputs", {}),
            **({"reward": reward} if scores else {}),
        },
        choices={**policy.get("choices", {}), **_best_policies(b, number)},
        files={
            **b.template,
            **(b.steering() if adaptive is None else b.hooks()),
            **b.experts(),
        },
    )


def _best_policies(b: Builder, number: int) -> dict[str, Choice]:
    """The models that recipes sample from which ask for the best one so far."""
    if number == 1:
        return {}
    gate = b.steps[f"round-{number - 1}/gate"]
    return {
        f"policy:{name}": Choice(gate, f"best-{name}.json")
        for name, recipe in b.recipes.items()
        if recipe.policy == "best"
    }


def _preferences(b: Builder, number: int) -> None:
    plan, files = b.plan, dict(b.base)
    inputs = {"heldout": b.steps["round-0/heldout"]}
    awaited: frozenset[str] = frozenset()
    given = plan.rounds[number - 1].preferences
    files |= b.files("preferences", given)
    embeds = plan.similarity.max_cosine is not None
    files |= b.embedder() if embeds else {}
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
        similarity=plan.similarity,
        embedder=b.pipeline.dedup.embedder if embeds else None,
        decontaminate=b.pipeline.decontaminate,
        recipes=b.recipes_with("hooks"),
    )
    address = f"round-{number}/preferences"
    b.add(address, "preferences", settings, inputs=inputs, files=files, awaited=awaited)


def _reward(b: Builder, at: str, batches: Mapping[str, Step]) -> Step:
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
        MeasureRewardStage(min_strength=plan.min_strength, scoring=plan.scoring),
        inputs={
            "reward": reward,
            **{f"member:rm-{name}": step for name, step in members.items()},
            **batches,
        },
        files=b.template,
    )
    return reward


def _curate(b: Builder, number: int, score: Step, select: Step) -> Step:
    plan = b.plan
    if plan.rounds[number - 1].human:
        _human(b, number, plan.rounds[number - 1].human)
    places = (f"round-{n}/human" for n in range(number + 1))
    human = {f"human:{place}": b.steps[place] for place in places if place in b.steps}
    rules = b.workspace.find("data_quality/rules.py")
    files = {"rules": rules}
    # Rules may read lists that lie beside them; the pipeline's settings enter as literals.
    lists = [p for p in sorted(rules.parent.glob("*.yaml")) if p.name != "pipeline.yaml"]
    files |= {f"rules:{path.name}": path for path in lists}
    files |= b.embedder()
    return b.add(
        f"round-{number}/curate",
        "curate",
        CurateStage(round=number, seed=plan.seed, pipeline=b.pipeline, mix=plan.mix),
        inputs={"score": score, "select": select, "heldout": b.steps["round-0/heldout"], **human},
        files=files,
    )


def _members(
    b: Builder,
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


def _trained(b: Builder, at: str) -> dict[str, Step]:
    """The policies that a round has trained so far, variants before their average."""
    members = {step.name: step for step in b.steps.values() if step.address.startswith(f"{at}/")}
    return {name: members[name] for name in members if name.partition("-")[0] in ("sft", "dpo")}


def _tasks(
    b: Builder, number: int, sources: tuple[Source, ...], policy: Step, before: Mapping[str, Any]
) -> None:
    """Tasks for the next round; in round 0 the base is the other model."""
    plan, at = b.plan, f"round-{number}"
    tasks, variants = plan.tasks, {}
    files = {**b.base, **b.template, **b.sources(sources)}
    inputs = {"policy": policy}
    if number == 0:
        tasks = tasks.model_copy(update={"models": ("previous",)})
        files["previous"] = b.base["base"]
    else:
        stage = "dpo" if plan.dpo.enabled else "sft"
        names = (plan.dpo if plan.dpo.enabled else plan.sft).variants
        variants = {f"variant:{n}": b.steps[f"{at}/{stage}-{n}"] for n in names}
        inputs |= {"previous": before["inputs"]["policy"]} if "inputs" in before else {}
    choices = {"previous": before["choices"]["policy"]} if "choices" in before else {}
    settings = TasksStage(
        round=number,
        seed=plan.seed,
        sources=sources,
        splits=plan.splits,
        tasks=tasks,
        sampling=plan.sampling,
        max_context=_max_context(plan),
        recipes=b.recipes_with("max_tokens", "system_prompts", "hooks"),
    )
    b.add(
        f"{at}/tasks",
        "tasks",
        settings,
        inputs={**inputs, **variants},
        choices=choices,
        files=files,
    )


def _rules(name: str, b: Builder) -> dict[str, Path]:
    """The rules file of simulated people or of a simulated judge."""
    owner = b.plan.annotator if name == "people" else b.plan.judge
    assert isinstance(owner, SimulatedAnnotator | SimulatedJudge)
    return {name: b.workspace.find(owner.rules)}
