"""What a plan (`rounds/NAME.yaml`) may say: six rounds of the paper's loop in one file.

Knows every key, its bounds and its default; knows no file system beyond path strings, which
are relative to the workspace. `posttrain schema` prints this as JSON Schema.

    parse(Plan, yaml.safe_load(open("rounds/tiny.yaml")), "rounds/tiny.yaml")
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from posttrain.rows import Strength
from posttrain.settings.annotation import Annotator, FileAnnotator, Share, Tasks
from posttrain.settings.base import Settings
from posttrain.settings.engines import (
    EngineSettings,
    TransformersEngineSettings,
    VllmEngineSettings,
)
from posttrain.settings.judges import Judge, NoJudge
from posttrain.settings.pretraining import Expert
from posttrain.settings.resources import Resources
from posttrain.settings.sources import Name, Source
from posttrain.settings.training import (
    PREFIX_KEEPS_KEYS,
    DpoSettings,
    RewardSettings,
    SftSettings,
    StageTraining,
)

PlanName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$")
]


class RoundData(Settings):
    """The data of one round."""

    prompts: tuple[Source, ...] = ()
    """Prompts to rejection-sample responses for; none: what the recipes name as `sources`."""
    human: tuple[str, ...] = ()
    """Files of human-written examples that join from this round on."""
    preferences: tuple[str, ...] = ()
    """Files of judged pairs. Without any, the round waits for the answers to the tasks that the
    round before published."""
    tasks: tuple[Source, ...] = ()
    """Prompts for the next round's preference tasks; the last round publishes none."""


class Bootstrap(Settings):
    """Round 0: the base, fine-tuned on human-written examples, is round 1's policy."""

    human: Annotated[tuple[str, ...], Field(min_length=1)]
    tasks: tuple[Source, ...] = ()


class Splits(Settings):
    """Shares of all prompts, by hash, that are never trained on."""

    dev: Share = 0.1
    """Gates and choices look at these."""
    test: Share = 0.1
    """Only ever reported."""

    @model_validator(mode="after")
    def _leave_something(self) -> Self:
        if self.dev + self.test >= 1:
            raise ValueError("dev and test together leave nothing to train on")
        return self


class Chat(Settings):
    """How dialogs become text."""

    template: str | None = None
    """A Jinja chat template with generation markers; None takes the base tokenizer's own."""


class Adaptive(Settings):
    """Few samples at first, more only where none of them is good enough, K at most."""

    first: Annotated[int, Field(ge=1)] = 4
    """Samples that each prompt gets."""
    growth: Annotated[float, Field(ge=1.25)] = 2.0
    """How many times as many samples a prompt has after each further try."""
    target: float | None = None
    """Reward model's score under which a passing response is not good enough; None asks for the
    gates alone. Sampling waits for the reward model where this is set."""


class Sampling(Settings):
    """Rejection sampling (section 4.2.2); K, temperature and length come from the recipes."""

    engine: EngineSettings = TransformersEngineSettings()
    shard_size: Annotated[int, Field(ge=1)] = 64
    """Prompts that are committed to disk together."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    adaptive: Adaptive | None = None
    """Spend fewer samples where prompts are easy; None takes all K of each prompt at once."""


class Scoring(Settings):
    """How the reward model scores responses and held-out pairs."""

    vllm: VllmEngineSettings | None = None
    """Score with vLLM, e.g. `{type: vllm, dtype: float32}`; None scores with transformers, in
    float32 in the step's own process. Scores are the same but for rounding."""


class Similarity(Settings):
    """How alike two neighbours of a ranking may be; more, and the worse of them is left out.

    A preference of which nothing is left to compare is dropped.
    """

    max_edit: Share | None = 0.95
    """Of the edit similarity, 1 − Levenshtein distance / length of the longer response, in tokens
    of the base; None drops none."""
    max_cosine: Share | None = None
    """Of the cosine under the embedder of the pipeline's `dedup`; None embeds nothing."""


class SyntheticPairs(Settings):
    """Preferences that nobody gave: the chosen response over a worse one to the same prompt."""

    min_gap: Annotated[float, Field(gt=0)] = 1.0
    """How far below the chosen response's score the other one is, at least."""


class Selection(Settings):
    """Which of K responses goes on: the gates, then the reward model (section 4.2.2)."""

    by: Literal["reward", "random"] = "reward"
    """Which of the responses that pass goes on: the reward model's best, or any (by hash), to see
    what the reward model adds."""
    verify: bool = True
    """Drop responses that a recipe's verifier fails; without it they are only counted, to see what
    verifying adds."""
    require_stop: bool = True
    """Drop responses that were cut at the length limit."""
    max_repetition: Share = 0.5
    """Drop responses in which a larger share of 4-grams are repeats."""
    length_penalty: Annotated[float, Field(ge=0)] = 0.0
    """What a token of a response costs it in score, where the reward model likes length too
    well."""
    keep: Annotated[int, Field(ge=1)] = 1
    """How many of the best responses to a prompt go on."""
    ensemble: Literal["none", "mean", "lower"] = "none"
    """Who scores: the averaged reward model; or each of its variants, and a response's score is
    the mean of theirs, or `lower`: the mean less `penalty` × their standard deviation."""
    penalty: Annotated[float, Field(ge=0)] = 1.0
    """How much disagreement of the variants costs under `lower`."""
    synthetic_pairs: SyntheticPairs | None = None
    """Also make preferences of the samples, for DPO beside the people's; they are marked."""
    history: Annotated[int, Field(ge=0)] = 5
    """How many earlier rounds' chosen responses are scored and curated again beside this
    round's."""


class Harness(Settings):
    """How lm-evaluation-harness runs the tasks that recipes name."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Most questions of a task; None asks all."""
    few_shot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples in the prompt; None is what each task says."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class Evaluation(Settings):
    """How models are measured on held-out prompts."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Prompts of which the dev and test shares are kept."""
    num_samples: Annotated[int, Field(ge=1)] = 4
    """Samples per prompt at `temperature`, beside one greedy response."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    members: bool = False
    """Whether the variants of SFT and DPO and their averages are measured too, greedy on dev."""
    harness: Harness = Harness()
    show: tuple[str, ...] = ()
    """Named measures of the recipes' `evaluate` hooks that comparisons show beside pass rates."""


class Gate(Settings):
    """A round whose dev pass rate regresses too far is not promoted."""

    tolerance: Share = 0.02
    """Largest accepted drop of the mean dev pass rate against the best round so far."""
    min_eos_share: Share = 0.5
    """Guard: share of sampled dev responses that must end by themselves."""
    max_length_growth: Annotated[float, Field(gt=1)] = 3.0
    """Guard: how many times as long as the last policy's a mean dev response may be."""


DialName = Literal["chosen_drop", "margin", "kl", "eos_share", "length_growth", "repetition"]


class Dials(Settings):
    """What is watched once a round's model is trained: a dial past its limit is flagged.

    Samples are those of the round's measure, on dev prompts. None sets no limit.
    """

    max_chosen_drop: Annotated[float, Field(gt=0)] | None = 10.0
    """Nats by which DPO makes chosen responses less likely, at its last steps."""
    min_margin: float | None = 0.0
    """Implicit reward by which DPO prefers chosen responses, at its last steps."""
    max_kl: Annotated[float, Field(gt=0)] | None = 30.0
    """Nats a sampled response by which the model has left the SFT model it started from."""
    min_eos_share: Share | None = 0.9
    """Share of sampled responses that end by themselves."""
    max_length_growth: Annotated[float, Field(gt=1)] | None = 1.5
    """How many times as long as the round before's a mean sampled response is."""
    max_repetition: Share | None = 0.2
    """Mean share of 4-grams of a sampled response that are repeats."""
    stop: tuple[DialName, ...] = ()
    """Dials that end the round past their limit, before the gate."""


class Keep(Settings):
    """Which weights outlive their round; `posttrain gc` removes the others, not the manifests."""

    members: bool = False
    """The variants, once their average exists."""
    reward: Annotated[int, Field(ge=1)] = 1
    """Newest averaged reward models."""
    sft: Annotated[int, Field(ge=1)] = 1
    """Newest averaged SFT models."""
    policy: Annotated[int, Field(ge=1)] = 6
    """Newest averaged DPO models; the promoted one always stays."""


class Plan(Settings):
    """Rounds of post-training on one base."""

    extends: PlanName | None = None
    """Another plan of which this one is a variation: what stands here is merged over it, mappings
    key by key, everything else as a whole."""
    varies: str = ""
    """What a variation leaves out or does in another way, in a few words."""
    base: str
    """The pre-trained checkpoint: a folder in the workspace, or an absolute path."""
    title: str = ""
    simulated: str = ""
    """What in this plan is simulated; shown wherever its results are."""
    seed: Annotated[int, Field(ge=0)] = 0
    chat: Chat = Chat()
    splits: Splits = Splits()
    mix: Annotated[dict[Name, Share], Field(min_length=1)]
    """Capability (a recipe's name) → wanted share of the SFT examples; sums to 1."""
    recipes: dict[Name, dict[str, Any]] = {}
    """Overrides of recipe.yaml, e.g. `{math: {k: 16}}`."""
    pipeline: dict[str, Any] = {}
    """Overrides of data_quality/pipeline.yaml."""
    bootstrap: Bootstrap
    experts: dict[Name, Expert] = {}
    """Branches of the base that recipes may sample from, `policy: {expert: NAME}` (section
    4.3.1)."""
    rounds: Annotated[tuple[RoundData, ...], Field(min_length=1)]
    annotator: Annotator = FileAnnotator()
    judge: Judge = NoJudge()
    min_strength: Strength = Strength.BETTER
    """Weakest preference that the reward model and DPO train on."""
    similarity: Similarity = Similarity()
    reward: RewardSettings = RewardSettings()
    sampling: Sampling = Sampling()
    scoring: Scoring = Scoring()
    selection: Selection = Selection()
    sft: SftSettings = SftSettings()
    dpo: DpoSettings = DpoSettings()
    evaluation: Evaluation
    dials: Dials = Dials()
    gate: Gate = Gate()
    tasks: Tasks = Tasks()
    keep: Keep = Keep()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _mix_is_whole(self) -> Self:
        total = sum(self.mix.values())
        if abs(total - 1) > 0.005:
            raise ValueError(f"mix: shares sum to {total:.4f}, expected 1")
        strangers = sorted(set(self.recipes) - set(self.mix))
        if strangers:
            raise ValueError(f"recipes.{strangers[0]}: not in mix, which has {sorted(self.mix)}")
        stages: tuple[tuple[str, StageTraining], ...]
        stages = (("reward", self.reward), ("sft", self.sft), ("dpo", self.dpo))
        for stage, own in stages:
            for name in own.variants:
                strangers = sorted(set(own.variant(name).mix) - set(self.mix))
                if strangers:
                    raise ValueError(f"{stage}.variants.{name}.mix: {strangers[0]} is not in mix")
        return self

    @model_validator(mode="after")
    def _variants_suffice(self) -> Self:
        last = "dpo" if self.dpo.enabled else "sft"
        num_members = len(self.dpo.variants if self.dpo.enabled else self.sft.variants)
        if "variants" in self.tasks.models and num_members < 2:
            raise ValueError(f"tasks.models: 'variants' needs at least two {last}.variants")
        if self.selection.ensemble != "none" and len(self.reward.variants) < 2:
            raise ValueError(
                f"selection.ensemble: {self.selection.ensemble!r} needs at least two "
                "reward.variants"
            )
        return self

    @model_validator(mode="after")
    def _somebody_can_judge(self) -> Self:
        strangers = sorted(set(self.tasks.mix) - set(self.mix))
        if strangers:
            raise ValueError(
                f"tasks.mix: {strangers[0]} is not in mix, which has {sorted(self.mix)}"
            )
        annotator = self.annotator
        judged = annotator.type == "judge" or annotator.judge is not None
        if judged and isinstance(self.judge, NoJudge):
            raise ValueError("annotator: a judge is to judge the tasks, but `judge` names none")
        if annotator.type == "simulated" and annotator.people < 2 and self.tasks.twice:
            raise ValueError("tasks.twice: two people are needed, annotator.people is 1")
        return self

    @model_validator(mode="after")
    def _layout_can_be_computed(self) -> Self:
        layouts = {self.reward.variant(name).layout for name in self.reward.variants}
        if "prefix" in layouts and self.resources.gradient_checkpointing:
            raise ValueError(PREFIX_KEEPS_KEYS)
        return self

    @model_validator(mode="after")
    def _preferences_come_from_somewhere(self) -> Self:
        data: list[tuple[str, Bootstrap | RoundData]] = [("bootstrap", self.bootstrap)]
        data += [(f"rounds.{i}", one) for i, one in enumerate(self.rounds)]
        for (name, before), this in zip(data, self.rounds, strict=False):
            if not this.preferences and not before.tasks:
                raise ValueError(
                    f"{name}.tasks: the next round lists no preferences, so tasks are needed here"
                )
        return self
