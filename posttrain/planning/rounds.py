"""The steps of each round, in order: a plan turned into handles; nothing runs here.

Knows which step reads which, and that round N's result is round N+1's policy. Knows no stage's
code: functions are named as text.

    steps = plan_steps(workspace, "tiny", plan)
    [step.address for step in steps.values() if step.round == 1]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput
from posttrain.planning.builder import Builder
from posttrain.planning.examples import curated, human_rows, max_context, rejection_sampled
from posttrain.settings.annotation import FileAnnotator, JudgeAnnotator, SimulatedAnnotator
from posttrain.settings.base import Settings
from posttrain.settings.judges import NoJudge, SimulatedJudge, VllmJudge
from posttrain.settings.plan import Plan
from posttrain.settings.pretraining import Expert, PretrainSettings
from posttrain.settings.sources import Source
from posttrain.settings.stages import (
    DialsStage,
    DpoStage,
    GateStage,
    LabelStage,
    MeasureRewardStage,
    PreferencesStage,
    PretrainStage,
    PromptsStage,
    RewardStage,
    SftStage,
    TasksStage,
)
from posttrain.settings.training import DpoSettings, StageTraining
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
        max_context=max_context(plan),
        recipes=b.recipes_with("max_tokens", "system_prompts", "hooks"),
    )
    b.add(
        "round-0/heldout",
        "prompts",
        heldout,
        files={**b.base, **b.template, **b.sources(sources)},
    )
    b.measure("round-0/measure-base", {"files": {"model": b.base["base"]}})
    b.harness("round-0/harness-base", {"files": {"model": b.base["base"]}})
    human = human_rows(b, 0, plan.bootstrap.human)
    first = next(iter(plan.sft.variants))
    policy = b.add(
        "round-0/bootstrap",
        "sft",
        SftStage(sft=plan.sft.variant(first)),
        inputs={"examples": human},
        files={**_start(b, plan.sft.variant(first)), **b.template},
    )
    for name, expert in plan.experts.items():
        _expert(b, name, expert, human)
    measured = b.measure("round-0/measure", {"inputs": {"model": policy}})
    b.harness("round-0/harness", {"inputs": {"model": policy}})
    gate = GateStage(
        round=0, gate=plan.gate, candidate=policy.address, capabilities=tuple(plan.mix)
    )
    b.add("round-0/gate", "gate", gate, inputs={"measure": measured, "candidate": policy})
    if plan.bootstrap.tasks and not plan.rounds[0].preferences:
        _tasks(b, 0, plan.bootstrap.tasks, policy, {})


def _expert(b: Builder, name: str, expert: Expert, human: Step) -> None:
    """A branch of the base: more pre-training, then what makes it answer (section 4.3.1)."""
    last = f"round-0/expert-{name}"
    branch = b.add(
        f"round-0/pretrain-{name}" if expert.align else last,
        "pretrain",
        PretrainStage(
            pretrain=PretrainSettings.model_validate(expert.model_dump(exclude={"align"})),
            decontaminate=b.pipeline.decontaminate,
        ),
        inputs={"heldout": b.steps["round-0/heldout"]},
        files={
            **b.base,
            **b.template,
            **{
                file: path
                for source, texts in expert.sources.items()
                for file, path in b.files(f"text:{source}", texts.files).items()
            },
        },
    )
    if expert.align:
        first = next(iter(b.plan.sft.variants))
        b.add(
            last,
            "sft",
            SftStage(sft=b.plan.sft.variant(first)),
            inputs={"examples": human, "base": branch},
            files=b.template,
        )


def _start(b: Builder, settings: StageTraining) -> dict[str, Path]:
    """The model that a training starts from, where that is no step's."""
    return b.base if settings.init is None else {"base": b.workspace.find(settings.init)}


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
    score, select = rejection_sampled(b, number, reward, policy)
    curate = curated(b, number, score)
    sft = _members(b, at, "sft", plan.sft, {"examples": curate})
    last = sft
    if plan.dpo.enabled:
        dpo_inputs = {"preferences": b.steps[f"{at}/preferences"], "sft": sft}
        if plan.selection.synthetic_pairs is not None:
            dpo_inputs["select"] = select
        last = _members(b, at, "dpo", plan.dpo, dpo_inputs)
    measured = b.measure(f"{at}/measure", {"inputs": {"model": last}})
    b.harness(f"{at}/harness", {"inputs": {"model": last}})
    if plan.evaluation.members:
        b.measure_members(at, _trained(b, at))
    dials = _dials(b, number, measured, last)
    b.add(
        f"{at}/gate",
        "gate",
        GateStage(
            round=number,
            gate=plan.gate,
            candidate=last.address,
            capabilities=tuple(plan.mix),
        ),
        inputs={"measure": measured, "candidate": last, "before": before, "dials": dials},
    )
    if number < len(plan.rounds) and not plan.rounds[number].preferences:
        _tasks(b, number, data.tasks, last, policy)


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
        label = b.steps.get(f"round-{number - 1}/label")
        inputs |= {"labels": label} if label is not None else {}
        if isinstance(plan.annotator, SimulatedAnnotator):
            files |= {**_people(b), **b.hooks()}
        elif isinstance(plan.annotator, FileAnnotator):
            files["answers"] = b.workspace.answers(b.name, number - 1)
            awaited = frozenset({"answers"})
    settings = PreferencesStage(
        round=number,
        seed=plan.seed,
        # Whoever judges tasks has no part in what a file states.
        annotator=FileAnnotator() if given else plan.annotator,
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
            files={**_start(b, plan.reward.variant(name)), **b.template},
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


def _members(
    b: Builder,
    at: str,
    stage: str,
    settings: StageTraining,
    inputs: Mapping[str, Step],
) -> Step:
    """The variants of SFT or DPO, and their average."""
    members = {}
    for name in settings.variants:
        own = settings.variant(name)
        one: Settings
        files, read = dict(b.template), dict(inputs)
        if stage == "sft":
            one = SftStage.model_validate({"sft": own})
            files |= _start(b, own)
        else:
            one = DpoStage(
                dpo=DpoSettings.model_validate(own),
                min_strength=b.plan.min_strength,
                without=tuple(name for name, recipe in b.recipes.items() if not recipe.dpo),
            )
            if own.init in {f"sft-{variant}" for variant in b.plan.sft.variants}:
                read["sft"] = b.steps[f"{at}/{own.init}"]
            elif own.init is not None:
                del read["sft"]
                files["sft"] = b.workspace.find(own.init)
        members[name] = b.add(f"{at}/{stage}-{name}", stage, one, inputs=read, files=files)
    return b.average(f"{at}/{stage}", settings, members)


def _dials(b: Builder, number: int, measured: Step, last: Step) -> Step:
    """The step that sees what training has done to the round's model."""
    plan, at = b.plan, f"round-{number}"
    inputs = {"measure": measured, "before": b.steps[f"round-{number - 1}/measure"]}
    betas: dict[str, float] = {}
    if plan.dpo.enabled:
        betas = {name: plan.dpo.variant(name).beta for name in plan.dpo.variants}
        inputs |= {"candidate": last, "sft": b.steps[f"{at}/sft"]}
        inputs |= {f"member:dpo-{name}": b.steps[f"{at}/dpo-{name}"] for name in betas}
    return b.add(
        f"{at}/dials",
        "dials",
        DialsStage(dials=plan.dials, betas=betas),
        inputs=inputs,
        files=b.template,
    )


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
    inputs = {"policy": policy, "measure": b.steps[f"{at}/measure"]}
    if tasks.gold is not None:
        files["gold"] = b.workspace.find(tasks.gold.path)
    if "expert" in tasks.models and number:
        files |= b.experts()
        inputs |= b.trained_experts()
        if not any(name.startswith("expert:") for name in (*files, *inputs)):
            raise BadInput("tasks.models: 'expert' needs a recipe whose policy is an expert")
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
        max_context=max_context(plan),
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
    _label(b, number)


def _label(b: Builder, number: int) -> None:
    """The step in which the judge answers the round's tasks, where the plan wants that."""
    plan = b.plan
    annotator, judge = plan.annotator, plan.judge
    helper = annotator if isinstance(annotator, JudgeAnnotator) else annotator.judge
    if helper is None or isinstance(judge, NoJudge):
        return
    if isinstance(judge, SimulatedJudge):
        files = {"judge": b.workspace.find(judge.rules), **b.hooks()}
    else:
        files = {"rubric": b.workspace.find(f"data_quality/rubrics/{helper.rubric}.jinja")}
        files |= {"judge": b.workspace.find(judge.model)} if isinstance(judge, VllmJudge) else {}
    b.add(
        f"round-{number}/label",
        "label",
        LabelStage(seed=plan.seed, judge=judge, recipes=b.recipes_with("hooks")),
        inputs={"tasks": b.steps[f"round-{number}/tasks"]},
        files=files,
    )


def _people(b: Builder) -> dict[str, Path]:
    """The rules file of simulated people."""
    assert isinstance(b.plan.annotator, SimulatedAnnotator)
    return {"people": b.workspace.find(b.plan.annotator.rules)}
