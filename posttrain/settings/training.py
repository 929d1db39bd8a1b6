"""Settings of the three trainers and of the averaging that closes each stage.

Defaults are the paper's where it names a value (sections 4.1.2 to 4.1.5) and ours elsewhere.

    SftSettings(learning_rate=1e-5, variants={"a": {}, "b": {"data_seed": 1}})
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from posttrain.settings.base import Settings, parse

VariantName = Annotated[str, Field(pattern=r"^[a-z0-9]+$")]


class Lora(Settings):
    """Low-rank adapters; merged into full weights before anything is published."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)


class Average(Settings):
    """How the members of a stage become one model (section 4.1.5)."""

    method: Literal["uniform", "weighted", "greedy"] = "uniform"
    """`greedy` starts with the variant that passes most dev prompts, and lets the others join one
    by one where the average passes no fewer (arXiv 2203.05482)."""
    weights: dict[VariantName, Annotated[float, Field(ge=0)]] = {}
    """For `weighted`: one weight a variant."""
    previous: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the model that the same stage made in the round before."""

    @model_validator(mode="after")
    def _greedy_is_measured(self) -> Self:
        if self.method == "greedy" and self.previous:
            raise ValueError(
                "average.previous: a greedy soup takes what measures best; leave one of the two out"
            )
        return self


class TrainingSettings(Settings):
    """What every trainer has."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps if `epochs` has not ended before."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows (rankings for the reward model, pairs for DPO) an optimizer step."""
    max_length: Annotated[int, Field(ge=8)] = 4096
    """Tokens a row may have; longer rows are dropped and counted, never cut."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    seed: int = 0
    """Initial weights and dropout. Reward variants share it: two random heads have no average."""
    data_seed: int = 0
    """Order of the rows."""
    lora: Lora | None = None


class StageTraining(TrainingSettings):
    """A training in variants, whose models are averaged (section 4.1.5)."""

    init: str | None = None
    """Model to start from in place of the base, or for DPO of the SFT model: a folder in the
    workspace or an absolute path; for DPO also `sft-a`, the round's SFT variant of that name."""
    mix: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Capability → how often its rows are seen where else they are seen once; of 0.5 half of them,
    by hash."""
    variants: Annotated[dict[VariantName, dict[str, Any]], Field(min_length=1)] = {
        "a": {},
        "b": {"data_seed": 1},
    }
    """Name → the settings in which this member of the average differs; null leaves out one that
    the plan below lists."""
    average: Average = Average()

    def variant(self, name: str) -> Self:
        """The settings of one member: these, with the variant's differences.

        Raises:
            BadInput: the variant names an unknown key or a wrong value.
        """
        merged = {**self.model_dump(exclude={"variants"}), **self.variants[name]}
        whole = {**merged, "variants": {name: {}}, "average": {}}
        return parse(type(self), whole, f"variants.{name}")

    @field_validator("variants", mode="before")
    @classmethod
    def _leave_out(cls, variants: Any) -> Any:
        if not isinstance(variants, dict):
            return variants
        return {
            name: differences for name, differences in variants.items() if differences is not None
        }

    @model_validator(mode="after")
    def _variants_parse(self) -> Self:
        known = set(type(self).model_fields) - {"variants", "average"}
        for name, differences in self.variants.items():
            wrong = sorted(set(differences) - known)
            if wrong:
                raise ValueError(f"variants.{name}.{wrong[0]}: unknown key; known: {sorted(known)}")
            merged = {**self.model_dump(exclude={"variants"}), **differences}
            if differences:
                try:
                    type(self).model_validate({**merged, "variants": {name: {}}, "average": {}})
                except ValidationError as error:
                    first = error.errors()[0]
                    place = ".".join(str(part) for part in first["loc"])
                    raise ValueError(
                        f"variants.{name}.{place}: {first['msg']} (got {first['input']!r})"
                    ) from None
        if self.average.method == "weighted" and set(self.average.weights) != set(self.variants):
            raise ValueError(
                f"average.weights: expected one weight for each of {sorted(self.variants)}"
            )
        if self.average.method == "weighted" and sum(self.average.weights.values()) == 0:
            raise ValueError("average.weights: at least one must be above 0")
        return self


PREFIX_KEEPS_KEYS = (
    "reward.layout: prefix keeps the prompt's keys and values, which "
    "resources.gradient_checkpointing computes anew; switch it off, or take layout: packed"
)
"""Why a layout cannot be combined with gradient checkpointing."""


class RewardSettings(StageTraining):
    """The reward model, from the pre-trained base, without margin (section 4.1.2)."""

    layout: Literal["auto", "packed", "prefix", "rows"] = "auto"
    """How a ranking is computed; scores are the same but for rounding. `packed`: prompt and all
    responses in one row; `prefix`: the prompt once, its keys and values repeated for the
    responses (not together with `resources.gradient_checkpointing`); `rows`: the prompt again with
    each response; `auto`: what is fastest for the lengths of the data."""
    isolate: bool = True
    """Each response is blind to the others. `false` is the paper's approximation, in `packed`
    alone: responses see those before them, in an order that changes from epoch to epoch."""

    @model_validator(mode="after")
    def _one_head(self) -> Self:
        for name, differences in self.variants.items():
            if "seed" in differences:
                raise ValueError(
                    f"variants.{name}.seed: reward variants share the seed of their random head; "
                    "vary data_seed or hyperparameters"
                )
        return self

    @model_validator(mode="after")
    def _averages_without_prompts(self) -> Self:
        if self.average.method == "greedy":
            raise ValueError(
                "reward.average.method: greedy is by the prompts that a policy passes; a reward "
                "model takes uniform or weighted"
            )
        return self

    @model_validator(mode="after")
    def _packed_unless_isolated(self) -> Self:
        if not self.isolate and self.layout not in ("auto", "packed"):
            raise ValueError(
                f"isolate: false has all responses in one row; layout must be packed or auto, not "
                f"{self.layout}"
            )
        return self


class SftSettings(StageTraining):
    """Supervised fine-tuning from the pre-trained base; prompts masked (section 4.1.3)."""


class DpoSettings(StageTraining):
    """Direct preference optimisation on the SFT model (section 4.1.4)."""

    enabled: bool = True
    """Without DPO a round ends with the averaged SFT model."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    nll_weight: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the negative log-likelihood of the chosen response (a mean per sequence)."""
    mask_format_tokens: bool = True
    """Leave header and termination tokens out of the DPO term (never out of the NLL term)."""
    max_chosen_drop: Annotated[float, Field(gt=0)] = 20.0
    """Guard: nats by which the mean chosen log-probability may fall below the reference's."""
