"""The literals of each step of a round: what the controller writes and a stage reads.

Everything here is identity: a change makes the step stale. The controller builds these from
the plan and the recipes, so that a stage never reads the plan itself.
"""

from typing import Any

from posttrain.rows import Strength
from posttrain.settings.annotation import Annotator, Tasks
from posttrain.settings.base import Settings
from posttrain.settings.judges import Judge
from posttrain.settings.pipeline import Decontaminate, Pipeline
from posttrain.settings.plan import (
    Dials,
    Evaluation,
    Gate,
    Harness,
    Sampling,
    Scoring,
    Selection,
    Similarity,
    Splits,
)
from posttrain.settings.pretraining import PretrainSettings
from posttrain.settings.recipe import RecipeSettings
from posttrain.settings.sources import Source
from posttrain.settings.training import DpoSettings, RewardSettings, SftSettings

Recipes = dict[str, RecipeSettings]


class PromptsStage(Settings):
    """Collect a round's prompts, or (round 0) the held-out ones."""

    round: int
    seed: int
    sources: tuple[Source, ...]
    splits: Splits
    held_out: bool
    max_context: int | None
    """Tokens a sampling engine takes at most, where that is less than the model's context."""
    recipes: Recipes
    seeds: tuple[Source, ...] = ()
    """What recipes make examples of, where that is no prompt."""
    library: str = ""
    """Version of Python whose standard library is read; empty where it is not."""


class HumanStage(Settings):
    """Check human-written examples."""

    splits: Splits
    decontaminate: Decontaminate


class PreferencesStage(Settings):
    """Turn the answers to tasks, and a plan's own files, into checked preferences."""

    round: int
    seed: int
    annotator: Annotator
    splits: Splits
    similarity: Similarity
    embedder: str | None
    """Who embeds responses; None where nobody does."""
    decontaminate: Decontaminate
    recipes: Recipes


class RewardStage(Settings):
    """One member of the reward model."""

    reward: RewardSettings
    min_strength: Strength


class SftStage(Settings):
    """One member of the SFT model, or the bootstrap policy."""

    sft: SftSettings


class PretrainStage(Settings):
    """Continued pre-training of the base."""

    pretrain: PretrainSettings
    decontaminate: Decontaminate


class DpoStage(Settings):
    """One member of the DPO model."""

    dpo: DpoSettings
    min_strength: Strength
    without: tuple[str, ...] = ()
    """Capabilities whose preferences DPO does not see."""


class AverageStage(Settings):
    """The mean of a stage's members."""

    members: tuple[str, ...]
    weights: dict[str, float] | None


class SampleStage(Settings):
    """K responses to each prompt."""

    round: int
    seed: int
    sampling: Sampling
    recipes: Recipes
    selection: Selection | None = None
    """The gates that end a prompt's sampling, where K is adaptive."""
    verify_ahead: Recipes = {}
    """Recipes whose verdicts are made known early, where K is fixed: that changes no response."""


class HookStage(Settings):
    """Rows that hooks work on with a model, a judge and an embedder."""

    round: int
    seed: int
    sampling: Sampling
    judge: Judge
    embedder: str
    """Who embeds texts."""
    live: int = 256
    """Rows at work at one time: those whose questions are answered together."""
    recipes: Recipes


class SynthesizeStage(HookStage):
    """Examples that recipes make of prompts, in as many steps of generation as they need."""

    splits: Splits
    seeded: tuple[str, ...] = ()
    """Recipes that start from seeds of their own in place of the round's prompts."""


class ReviseStage(HookStage):
    """Second tries at prompts of which no response passed."""


class ScoreStage(Settings):
    """Reward model's scores, or its variants' made one."""

    ensemble: bool = False
    """Whether the variants score in place of their average."""
    penalty: float = 0.0
    """What a standard deviation among the variants costs."""
    scoring: Scoring = Scoring()


class SelectStage(Settings):
    """Gates and best of K."""

    round: int
    selection: Selection
    recipes: Recipes


class GradeStage(Settings):
    """A judge's grades of what was selected."""

    judge: Judge
    hooks: HookStage | None = None
    """Where recipes grade with a hook of their own."""


class CurateStage(Settings):
    """Cleaning, quality, difficulty, duplicates and the mix."""

    round: int
    seed: int
    pipeline: Pipeline
    mix: dict[str, float]
    sub_mixes: dict[str, dict[str, float]] = {}
    """Capability → how its share is divided among where its rows come from."""


class MeasureStage(Settings):
    """Pass rates on held-out prompts."""

    seed: int
    evaluation: Evaluation
    sampling: Sampling
    recipes: Recipes
    mix: dict[str, float]


class HarnessStage(Settings):
    """Tasks of lm-evaluation-harness."""

    seed: int
    harness: Harness
    tasks: dict[str, tuple[str, ...]]
    """Capability → names of tasks."""


class SoupStage(MeasureStage):
    """The members of a stage that measure best together."""

    members: tuple[str, ...]


class MeasureMembersStage(MeasureStage):
    """Pass rates of a round's variants and their averages."""

    models: tuple[str, ...]
    """Names of the steps that made them."""


class MeasureRewardStage(Settings):
    """Accuracy of the reward model and of its members on held-out pairs."""

    min_strength: Strength
    scoring: Scoring = Scoring()


class DialsStage(Settings):
    """What a round's training has done to its model, beside limits."""

    dials: Dials
    betas: dict[str, float]
    """Of each variant of the DPO; empty where there is none."""


class GateStage(Settings):
    """Promote this round's model, or keep the best one so far."""

    round: int
    gate: Gate
    candidate: str
    """Address of the model this round made."""
    capabilities: tuple[str, ...] = ()
    """Those of which the best model so far is named as well."""


class TasksStage(Settings):
    """Pairs of responses for people to judge."""

    round: int
    seed: int
    sources: tuple[Source, ...]
    splits: Splits
    tasks: Tasks
    sampling: Sampling
    max_context: int | None
    recipes: Recipes


class LabelStage(Settings):
    """A judge's verdicts on the round's tasks."""

    seed: int
    judge: Judge
    recipes: Recipes


_OF_VLLM = (
    "python",
    "tensor_parallel_size",
    "data_parallel_size",
    "gpu_memory_utilization",
    "max_model_len",
    "max_num_seqs",
    "cpu_kv_cache_gb",
    "start_seconds",
)
_OF_ENDPOINT = (
    "url",
    "model",
    "api_key_env",
    "concurrency",
    "timeout_seconds",
    "retries",
    "max_model_len",
    "reload",
    "trust_served_model",
)
_PLAIN = frozenset(
    {
        # Where a file lies; its content enters on its own.
        "sources.*.path",
        "seeds.*.path",
        "pretrain.sources.*.files",
        "reward.init",
        "sft.init",
        "dpo.init",
        "evaluation.sources",
        # Whether another step exists, and what is shown of this one.
        "evaluation.members",
        "evaluation.show",
        # Another step's literals.
        "evaluation.harness",
        "harness.batch_size",
        # Who scores: the score step's literals.
        "selection.ensemble",
        "selection.penalty",
        "annotator.rules",
        # Their content enters; the judge's verdicts are another step's.
        "tasks.gold.path",
        # How long a round waits.
        "annotator.min_answered",
        "annotator.rubric",
        "annotator.judge.rubric",
        "judge.rules",
        "judge.engine.batch_size",
        *(f"judge.engine.{key}" for key in (*_OF_VLLM, *_OF_ENDPOINT)),
        *(f"judge.{key}" for key in ("concurrency", "timeout_seconds", "retries", "api_key_env")),
        "sampling.shard_size",
        # Only makes verdicts known early.
        "verify_ahead",
        "sampling.engine.batch_size",
        *(f"sampling.engine.{key}" for key in (*_OF_VLLM, *_OF_ENDPOINT)),
        *(f"scoring.vllm.{key}" for key in _OF_VLLM),
    }
)
CIRCUMSTANCES = _PLAIN | {f"hooks.{path}" for path in _PLAIN}
"""Paths in a stage's settings that say how, not what: no seed or result is defined by them."""


def literals(settings: Settings) -> dict[str, Any]:
    """A stage's settings as the JSON values that enter its fingerprint."""
    return settings.model_dump(mode="json")
