"""The steps of a round from its prompts to its SFT examples: sampled, chosen, graded and curated.

Knows which of these reads which; `posttrain.planning.rounds` knows what comes before and after.

    score, select = rejection_sampled(b, 1, reward, policy)
    curated(b, 1, score)
"""

import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from posttrain.planning.builder import Builder
from posttrain.settings.judges import EndpointJudge, NoJudge, SimulatedJudge, VllmJudge
from posttrain.settings.plan import Plan
from posttrain.settings.sources import STDLIB
from posttrain.settings.stages import (
    CurateStage,
    GradeStage,
    HookStage,
    HumanStage,
    PromptsStage,
    ReviseStage,
    SampleStage,
    ScoreStage,
    SelectStage,
    SynthesizeStage,
)
from posttrain.steps.step import Choice, Step


def rejection_sampled(
    b: Builder, number: int, reward: Step, policy: Mapping[str, Any]
) -> tuple[Step, Step]:
    """The steps that score a round's responses and choose among them (section 4.2.2)."""
    plan, at = b.plan, f"round-{number}"
    sources, seeds, selection = b.round_sources(number), b.seeds(), plan.selection
    library = any(one.type != "hook" and one.path == STDLIB for one in (*sources, *seeds))
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
            max_context=max_context(plan),
            recipes=b.recipes_with("max_tokens", "system_prompts", "hooks"),
            seeds=seeds,
            library=platform.python_version() if library else "",
        ),
        files={**b.base, **b.template, **b.sources(sources), **b.sources(seeds, "seeds")},
    )
    sample = _revised(b, number, prompts, _sample(b, number, prompts, reward, policy), policy)
    made = _synthesized(b, number, prompts, policy)
    history = range(max(1, number - selection.history), number)
    earlier = {f"chosen:{n}": _chosen(b, n) for n in history}
    score = b.add(
        f"{at}/score",
        "score",
        ScoreStage(
            ensemble=selection.ensemble != "none",
            penalty=selection.penalty if selection.ensemble == "lower" else 0.0,
            scoring=plan.scoring,
        ),
        inputs={"sample": sample, **by, **earlier, **made},
        files=b.template,
    )
    select = b.add(
        f"{at}/select",
        "select",
        SelectStage(
            round=number,
            selection=selection,
            recipes=b.recipes_with("hooks", "answer_in", "languages", "train_on_steering"),
        ),
        inputs={"prompts": prompts, "score": score},
        files=b.hooks(),
    )
    _graded(b, number, {"prompts": prompts, "chosen": select}, policy)
    return score, select


def _graded(b: Builder, number: int, inputs: Mapping[str, Step], policy: Mapping[str, Any]) -> None:
    """The step in which the judge, or a recipe's own hook, grades what was chosen."""
    hooked = any("judge" in one.hooks for one in b.recipes.values())
    if isinstance(b.plan.judge, NoJudge) and not hooked:
        return
    parts: dict[str, Any] = {"inputs": {}, "files": {}}
    if hooked:
        parts = _hook_parts(b, number, policy)
    parts["inputs"] |= inputs
    parts["files"] |= _judge_files(b)
    hooks = _hook_settings(b, number) if hooked else None
    b.add(f"round-{number}/grade", "grade", GradeStage(judge=b.plan.judge, hooks=hooks), **parts)


def _chosen(b: Builder, number: int) -> Step:
    """The step whose `selected.jsonl` a round goes on with: graded where there is a judge."""
    select = b.steps[f"round-{number}/select"]
    return b.steps.get(f"round-{number}/grade", select)


def _judge_files(b: Builder) -> dict[str, Path]:
    """The judge's rules, or its model and rubrics."""
    judge = b.plan.judge
    if isinstance(judge, NoJudge):
        return {}
    if isinstance(judge, SimulatedJudge):
        return {"judge": b.workspace.find(judge.rules)}
    assert isinstance(judge, VllmJudge | EndpointJudge)
    names = {judge.rubric, *judge.rubrics.values()}
    names |= {"difficulty"} if judge.difficulty else set()
    names |= {"tags"} if judge.tags else set()
    find = b.workspace.find
    files = {f"rubric:{n}": find(f"data_quality/rubrics/{n}.jinja") for n in sorted(names)}
    return files | ({"judge": find(judge.model)} if isinstance(judge, VllmJudge) else {})


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
            **b.trained_experts(),
        },
        choices={**policy.get("choices", {}), **_best_policies(b, number)},
        files={
            **b.template,
            **(b.steering() if adaptive is None else b.hooks()),
            **b.experts(),
        },
    )


def _revised(
    b: Builder, number: int, prompts: Step, sample: Step, policy: Mapping[str, Any]
) -> Step:
    """The step whose responses are scored: with second tries where a recipe has them."""
    if not any("revise" in one.hooks for one in b.recipes.values()):
        return sample
    inputs = {"prompts": prompts, "sample": sample}
    return _hook_step(b, number, "revise", ReviseStage, inputs, policy)


def _synthesized(
    b: Builder, number: int, prompts: Step, policy: Mapping[str, Any]
) -> dict[str, Step]:
    """The step that makes examples, where a recipe does."""
    if not any("synthesize" in one.hooks for one in b.recipes.values()):
        return {}
    own = {
        "splits": b.plan.splits,
        "seeded": tuple(name for name, one in b.recipes.items() if one.seeds),
    }
    step = _hook_step(b, number, "synthesize", SynthesizeStage, {"prompts": prompts}, policy, own)
    return {"synthesize": step}


def _hook_step(
    b: Builder,
    number: int,
    stage: str,
    kind: type[HookStage],
    inputs: Mapping[str, Step],
    policy: Mapping[str, Any],
    own: Mapping[str, Any] = MappingProxyType({}),
) -> Step:
    """A step in which hooks have a model, a judge, an embedder and their corpora."""
    parts = _hook_parts(b, number, policy)
    parts["inputs"] |= inputs
    settings = kind.model_validate({**dict(_hook_settings(b, number)), **own})
    return b.add(f"round-{number}/{stage}", stage, settings, **parts)


def _hook_settings(b: Builder, number: int) -> HookStage:
    keys = ("hooks", "corpora", "tries", "max_failed", "hook_seconds", "temperature", "max_tokens")
    return HookStage(
        round=number,
        seed=b.plan.seed,
        sampling=b.plan.sampling,
        judge=b.plan.judge,
        embedder=b.pipeline.dedup.embedder,
        recipes=b.recipes_in_round(number, *keys),
    )


def _hook_parts(b: Builder, number: int, policy: Mapping[str, Any]) -> dict[str, Any]:
    """What hooks' handles stand on: models, recipes, corpora, rubrics."""
    plan, find = b.plan, b.workspace.find
    corpora = {
        f"corpus:{name}:{corpus}": find(path)
        for name, one in b.recipes.items()
        for corpus, path in one.corpora.items()
    }
    scorers = {
        f"process:{name}": find(one.process_reward)
        for name, one in b.recipes.items()
        if one.process_reward
    }
    judge: dict[str, Path] = {}
    if isinstance(plan.judge, SimulatedJudge):
        judge = {"judge": find(plan.judge.rules)}
    elif isinstance(plan.judge, VllmJudge):
        judge = {"judge": find(plan.judge.model)}
    return {
        "inputs": {**policy.get("inputs", {}), **b.trained_experts()},
        "choices": {**policy.get("choices", {}), **_best_policies(b, number)},
        "files": {
            **b.template,
            **b.hooks(),
            **b.experts(),
            **b.embedder(),
            **corpora,
            **scorers,
            **judge,
            "rubrics": find("data_quality/rubrics"),
        },
    }


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


def curated(b: Builder, number: int, score: Step) -> Step:
    """The step that makes a round's SFT examples of what was chosen and of human rows."""
    plan = b.plan
    if plan.rounds[number - 1].human:
        human_rows(b, number, plan.rounds[number - 1].human)
    places = (f"round-{n}/human" for n in range(number + 1))
    human = {f"human:{place}": b.steps[place] for place in places if place in b.steps}
    rules = b.workspace.find("data_quality/rules.py")
    files = {"rules": rules}
    # Rules may read lists that lie beside them; the pipeline's settings enter as literals.
    lists = [p for p in sorted(rules.parent.glob("*.yaml")) if p.name != "pipeline.yaml"]
    files |= {f"rules:{path.name}": path for path in lists}
    own = b.pipeline.filters.items()
    files |= {f"filter:{name}": b.workspace.find(f"data_quality/{file}") for name, file in own}
    files |= b.embedder()
    return b.add(
        f"round-{number}/curate",
        "curate",
        CurateStage(
            round=number,
            seed=plan.seed,
            pipeline=b.pipeline,
            mix=plan.mix,
            sub_mixes={name: one.sub_mix for name, one in b.recipes.items() if one.sub_mix},
        ),
        inputs={
            "score": score,
            "chosen": _chosen(b, number),
            "heldout": b.steps["round-0/heldout"],
            **human,
        },
        files=files,
    )


def max_context(plan: Plan) -> int | None:
    """Tokens that the sampling engine takes at most, where it is told."""
    engine = plan.sampling.engine
    return None if engine.type == "transformers" else engine.max_model_len


def human_rows(b: Builder, number: int, paths: tuple[str, ...]) -> Step:
    """The step that checks the human-written examples of a round."""
    return b.add(
        f"round-{number}/human",
        "human",
        HumanStage(splits=b.plan.splits, decontaminate=b.pipeline.decontaminate),
        inputs={"heldout": b.steps["round-0/heldout"]},
        files={**b.base, **b.files("human", paths)},
    )
