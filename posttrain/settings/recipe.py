"""What a `recipe.yaml` may say. Order: these defaults < recipe.yaml < plan < `--set`.

Knows every key, its bounds and its default; hooks are code, and found by name.

    load_recipe_settings(workspace, "math", {"k": 16})
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from posttrain.settings.base import Settings
from posttrain.settings.sources import Source


class TemperatureRange(Settings):
    """Drawn from evenly, by the prompt's id."""

    low: Annotated[float, Field(gt=0)]
    high: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


class ModelPolicy(Settings):
    """A model folder to sample from in place of the round's own policy."""

    model: str
    """A folder in the workspace, or an absolute path."""


class ExpertPolicy(Settings):
    """An expert of the plan to sample from in place of the round's own policy."""

    expert: str
    """Its name in the plan's `experts`."""


Temperature = Annotated[float, Field(gt=0)] | TemperatureRange
RoundName = Annotated[str, Field(pattern=r"^([1-9][0-9]*|last)$")]


class RecipeSettings(Settings):
    """How one capability is sampled, checked and mixed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    summary: str = ""
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Default share of the SFT mix; a plan's `mix` owns the real one."""
    sub_mix: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How the share is divided among where rows come from: the beginning of a row's `source`
    (`human`, `rejection sampling`, `multilingual.synthesize`) → weight. None: as rows come."""
    dpo: bool = True
    """Whether this capability's preferences train DPO; those of long contexts do not (4.3.4). The
    reward model learns from all."""
    sources: tuple[Source, ...] = ()
    """Prompts of a round whose plan names none."""
    seeds: tuple[Source, ...] = ()
    """What `synthesize` starts from; none: the round's prompts."""
    k: Annotated[int, Field(ge=0)] = 10
    """Samples per prompt (10 to 30 in the paper); 0 turns rejection sampling off."""
    temperature: Temperature = 1.0
    """Of sampling; a range `{low: 0.2, high: 1}` is drawn from, once for each prompt."""
    temperature_in_round: dict[RoundName, Temperature] = {}
    """Round's number, or `last` → a temperature of its own. A plan's last round is both."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest response."""
    policy: Literal["latest", "best"] | ModelPolicy | ExpertPolicy = "latest"
    """Which model to sample from (section 4.2.2): the latest promoted policy, the one that was
    best at this capability on dev so far, any folder (`{model: models/code-expert}`), or an
    expert that the plan trains (`{expert: code}`)."""
    system_prompts: tuple[str, ...] = ()
    """Templates in `prompts/` (without `.jinja`) that steer; they take turns over a prompt's K
    samples."""
    train_on_steering: bool = False
    """Whether the system prompt that steered stays in the training row; else it is left out."""
    answer_in: Literal["any", "script", "language"] = "any"
    """Drop responses in another script, or in another script or language, than the prompt's."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes that `answer_in` tells apart; none: every language its identifier knows."""
    hooks: tuple[
        Literal["prompts", "verify", "revise", "synthesize", "judge", "evaluate"], ...
    ] = ()
    """Functions of `hooks.py` to use."""
    options: dict[str, Any] = {}
    """The recipe's own settings, which hooks find as `handle.options`."""
    corpora: dict[str, str] = {}
    """Name → a file of texts in the workspace, for `handle.retrieve`."""
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness that measure this capability (`[gsm8k]`), beside the hook
    `evaluate`; needs the extra `eval`. A recipe's own tasks stand in its folder `tasks/`."""
    process_reward: str | None = None
    """Folder of a process reward model (a token classifier as TRL's PRM trainer saves it), which
    `handle.judge("steps", {question, steps})` asks: percent of the least probable step."""
    tries: Annotated[int, Field(ge=1)] = 2
    """How often `revise` is asked for a better response to a prompt of which none passed."""
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of rows in which a hook may fail; past it the recipe stops, the others go on."""
    hook_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Time that a hook's own code may take for a row between two questions to its handle."""

    def in_round(self, number: int, last: int) -> Self:
        """These settings as they hold in a round of a plan with `last` rounds."""
        own = self.temperature_in_round
        name = "last" if number == last and "last" in own else str(number)
        return self.model_copy(
            update={"temperature": own.get(name, self.temperature), "temperature_in_round": {}}
        )
