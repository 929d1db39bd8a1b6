"""What `data_quality/pipeline.yaml` may say: the order of curation and its thresholds.

Knows every key, its bounds and its default (section 4.2.3 where the paper gives a value, ours
elsewhere). Order: these defaults < pipeline.yaml < a plan's `pipeline` < `--set`.

    parse(Pipeline, yaml.safe_load(path.read_text()), "data_quality/pipeline.yaml")
"""

import difflib
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from posttrain.settings.base import Settings

StepName = Literal[
    "clean",
    "exact_duplicates",
    "minhash",
    "quality",
    "difficulty",
    "semantic_dedup",
    "topics",
    "balance",
    "decontaminate",
    "mix",
]
STEPS: tuple[str, ...] = get_args(StepName)
Share = Annotated[float, Field(ge=0, le=1)]

RULES = (
    "fix_mojibake",
    "drop_control_tokens",
    "drop_boilerplate_opening",
    "mask_pii",
    "strip_emoji",
    "calm_exclamations",
    "drop_empty",
)


FAMILIES: dict[str, tuple[str, ...]] = {
    "apology": ("i'm sorry", "i am sorry", "i apologize", "my apologies"),
    "as a model": ("as an ai", "as a language model"),
    "offer": ("i hope this helps", "let me know if", "feel free to"),
}


class Clean(Settings):
    """Rules that remove or modify rows."""

    rules: tuple[str, ...] = RULES
    """Functions of `data_quality/rules.py`, applied in this order."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.rules)) < len(self.rules):
            raise ValueError(f"clean.rules: a rule is listed twice in {list(self.rules)}")
        return self


class Quality(Settings):
    """Which rows are good enough: two signals, the reward model's and the judge's."""

    rm_top_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of a capability's scored rows that the reward model likes best (the paper's top
    quartile); rows that tie with the last of them count as well."""
    use_judge: bool = True
    """Whether the judge's grades count; a row without a grade never counts as best."""
    keep: Literal["union", "reward", "judge", "all"] = "union"
    """Keep rows that either signal, or one of them, calls best; `all` measures and drops none."""

    unscored: Literal["drop", "keep"] = "drop"
    """What becomes of a row with neither a score nor a grade that counts; such rows are counted."""

    @model_validator(mode="after")
    def _judge_is_used(self) -> Self:
        if self.keep == "judge" and not self.use_judge:
            raise ValueError("quality.keep: 'judge' needs use_judge: true")
        return self


class Difficulty(Settings):
    """A three-point scale, 1 the easiest, from the first measure that a row has."""

    by: tuple[Literal["level", "judge", "tags", "pass_rate"], ...] = (
        "level",
        "judge",
        "tags",
        "pass_rate",
    )
    """The prompt's level; the judge's own three points; how many intentions the judge named
    (InsTag); the share of its K samples that passed."""
    tag_bounds: tuple[int, int] = (2, 4)
    """Most intentions of an easy prompt, and of a medium one."""
    tag_cosine: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Tags whose vectors are as near as this are one."""
    level_bounds: tuple[int, int] = (2, 4)
    """Highest level that is easy (1), and highest that is medium (2)."""
    pass_rate_bounds: tuple[Share, Share] = (0.75, 0.25)
    """Of a prompt's K samples: lowest share that passed of an easy prompt, and of a medium one."""
    unknown: Literal[1, 2, 3] = 2
    """Difficulty of a row with none of these; such rows are counted."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.level_bounds[0] >= self.level_bounds[1]:
            raise ValueError("difficulty.level_bounds: expected [easy, medium] with easy < medium")
        if self.tag_bounds[0] >= self.tag_bounds[1]:
            raise ValueError("difficulty.tag_bounds: expected [easy, medium] with easy < medium")
        if not self.by or len(set(self.by)) < len(self.by):
            raise ValueError(f"difficulty.by: expected measures, each once, got {list(self.by)}")
        if self.pass_rate_bounds[0] <= self.pass_rate_bounds[1]:
            raise ValueError(
                "difficulty.pass_rate_bounds: expected [easy, medium] with easy > medium"
            )
        return self


class Dedup(Settings):
    """Semantic deduplication inside a capability."""

    embedder: str = "minilm"
    """`minilm` (comes with the package), or the folder of a sentence-transformers model, relative
    to the workspace. A threshold belongs to its embedder: change both together."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Keep a row only if its largest cosine to the rows before it is below this."""
    rule: Literal["kept", "seen"] = "kept"
    """Compare with rows that were kept, or with every row seen so far; the paper allows both."""
    max_loss: Share = 0.3
    """Share of the rows of a capability, a source or a topic past whose removal the step stops:
    texts that all look alike to the embedder are no duplicates."""
    mode: Literal["auto", "exact", "ivf", "clustered"] = "auto"
    """`exact` compares all, `ivf` the nearest clusters, `clustered` as the paper does; `auto` is
    exact up to 100,000 rows and ivf past them."""
    probes: Annotated[int, Field(ge=1)] = 8
    """Of ivf: clusters that a row is compared with."""
    passes: Annotated[int, Field(ge=1)] = 1
    """Of clustered: how often what is left is clustered afresh."""
    block: Annotated[int, Field(ge=1)] = 1024
    """Rows compared at a time; memory, not results, depends on it."""
    earlier: Literal["first", "rank"] = "first"
    """Where rows of earlier rounds stand, here and in minhash: `first` seeds what is kept with them
    (people's rows come before), `rank` lets them compete with this round's."""
    least_rows: Annotated[int, Field(ge=1)] = 20
    """Of a source or a topic that max_loss is held against; all are reported."""


class Topics(Settings):
    """A linear classifier of topics, fitted on the prompts of `data_quality/topics.yaml`."""

    strength: Annotated[float, Field(gt=0)] = 30.0
    """How closely it follows those prompts: the inverse of its regularization."""
    least_probability: Share = 0.2
    """Of a coarse topic; a dialog with none so likely is `other`."""


class MinHash(Settings):
    """Dialogs of a capability that share most of their wording, verified on the texts."""

    ngram: Annotated[int, Field(ge=1)] = 5
    """Words of a run; what is compared are the different runs of two dialogs."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of the runs from which the worse dialog goes."""


class Balance(Settings):
    """Phrases that too many answers hold; the worst rows that hold them go (section 4.2.3)."""

    families: dict[str, tuple[str, ...]] = FAMILIES
    """Phrases by the name of their family, in lower case."""
    max_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the rows that may hold a family, and of a capability's that may open alike."""
    find: bool = True
    """Whether to look for openings that models use more often than people do."""
    words: Annotated[int, Field(ge=1)] = 3
    """Of an opening, at most."""
    ratio: Annotated[float, Field(ge=1)] = 3.0
    """How many times as often as people models may open with the same words."""
    least_human: Annotated[int, Field(ge=1)] = 50
    """Rows by people that a capability must have to be compared with."""

    @model_validator(mode="after")
    def _lower_case(self) -> Self:
        for name, phrases in self.families.items():
            odd = [phrase for phrase in phrases if phrase != phrase.casefold() or not phrase]
            if odd or not phrases:
                raise ValueError(
                    f"balance.families.{name}: expected phrases in lower case, got {list(phrases)}"
                )
        return self


class Decontaminate(Settings):
    """Rows that hold a held-out prompt are dropped."""

    ngram: Annotated[int, Field(ge=2)] = 13
    """Words in a row that count as a match, for held-out prompts at least that long; shorter
    prompts are matched whole."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a held-out prompt's n-grams that a row must hold to be dropped; lower values hit
    prompts that only share a template."""


class Mix(Settings):
    """Shares of capabilities by number of examples; a plan's `mix` owns the shares themselves."""

    max_repeat: Annotated[int, Field(ge=1)] = 4
    """How often SFT may see a row of a small source in an epoch."""
    by: Literal["capability", "topic"] = "capability"
    """What the wanted shares are of; coarse topics need the step `topics`."""
    max_total: Annotated[int, Field(ge=1)] | None = None
    """Most examples, repeats counted; None sets no limit."""


class Pipeline(Settings):
    """Curation of one round's examples."""

    order: tuple[str, ...] = (
        "clean",
        "exact_duplicates",
        "minhash",
        "quality",
        "difficulty",
        "semantic_dedup",
        "balance",
        "decontaminate",
        "mix",
    )
    """Steps and filters to run, in this order; decontaminate is always among them, and mix is the
    last."""
    filters: dict[str, str] = {}
    """Your own steps: the name of a function, and the file of `data_quality/` that defines it."""
    clean: Clean = Clean()
    quality: Quality = Quality()
    difficulty: Difficulty = Difficulty()
    dedup: Dedup = Dedup()
    minhash: MinHash = MinHash()
    topics: Topics = Topics()
    balance: Balance = Balance()
    decontaminate: Decontaminate = Decontaminate()
    mix: Mix = Mix()

    @model_validator(mode="after")
    def _order_makes_sense(self) -> Self:
        order = self.order
        for name in order:
            if name not in STEPS and name not in self.filters:
                near = difflib.get_close_matches(name, [*STEPS, *self.filters], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"order: no step or filter {name}{hint}")
        for name in self.filters:
            if name in STEPS:
                raise ValueError(f"filters.{name}: a step has this name already")
            if name not in order:
                raise ValueError(f"filters.{name}: put {name} into the order, or leave it out here")
        if len(set(order)) < len(order):
            raise ValueError(f"order: a step is listed twice in {list(order)}")
        if "decontaminate" not in order:
            raise ValueError("order: decontaminate is missing; held-out prompts must not leak")
        if not order or order[-1] != "mix":
            raise ValueError("order: mix comes last, a step after it would change the shares")
        if "clean" in order and order[0] != "clean":
            raise ValueError("order: clean comes first, the other steps look at what it leaves")
        if self.mix.by == "topic" and "topics" not in order:
            raise ValueError("mix.by: shares of topics need the step topics in the order")
        if "semantic_dedup" in order:
            later = order[order.index("semantic_dedup") :]
            for signal in ("quality", "difficulty"):
                if signal in later:
                    raise ValueError(f"order: semantic_dedup sorts by {signal}, put {signal} first")
        return self
