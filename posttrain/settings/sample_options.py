"""What `posttrain sample` can be told: its settings, and the options they come from. Loads little.

Knows the engines' settings and how an option's error reads. Samples nothing;
`posttrain.sample_files` does.

    read_options({"model": Path("rounds/tiny/base"), "engine": "transformers", "k": 4})
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from posttrain.errors import BadInput
from posttrain.settings.base import Settings, with_overrides
from posttrain.settings.engines import EngineSettings, TransformersEngineSettings

_OF_ENGINE = {"python": "--python", "url": "--url", "model": "--served-model"}


class SampleFileSettings(Settings):
    """How a file of prompts is sampled, outside of a round."""

    model: Path
    """A model folder."""
    engine: EngineSettings = TransformersEngineSettings()
    k: Annotated[int, Field(ge=1)] = 10
    """Responses to each prompt."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest response."""
    seed: Annotated[int, Field(ge=0)] = 0
    logprobs: bool = False
    """Whether rows get the log-probability of each sampled token."""
    system: tuple[Path, ...] = ()
    """Texts (or Jinja templates without variables) that steer; a prompt's K samples are shared out
    over them, and a row's `system_id` is the file's name without its ending."""
    template: Path | None = None
    """Chat template in place of the tokenizer's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where transformers computes. Other engines compute on what they were installed for."""
    shard_size: Annotated[int, Field(ge=1)] = 64
    """Requests that are committed to disk together."""
    reject_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of malformed input rows past which nothing is sampled."""

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.device != "auto" and self.engine.type != "transformers":
            raise ValueError(
                f"--device {self.device}: only the transformers engine can be told where to "
                f"compute, this is {self.engine.type}"
            )
        if self.k < len(self.system):
            raise ValueError(
                f"-k {self.k}: fewer samples than the {len(self.system)} --system files, some of "
                "which would never be used"
            )
        return self


def read_options(options: Mapping[str, Any]) -> SampleFileSettings:
    """The settings that the command line's options say.

    Args:
        options: by the settings' names, with `engine` the engine's type, `set` overrides of its
            settings (`key=value`), and `python`, `url` and `served_model` where they were given.

    Raises:
        BadInput: one line for every option that is wrong.
    """
    rest = dict(options)
    engine = {
        "type": rest.pop("engine"),
        "python": rest.pop("python", None),
        "url": rest.pop("url", None),
        "model": rest.pop("served_model", None),
    }
    given = {key: value for key, value in engine.items() if value is not None}
    rest["engine"] = with_overrides(given, rest.pop("set", None) or ())
    try:
        return SampleFileSettings.model_validate(rest)
    except ValidationError as error:
        raise BadInput("\n".join(map(_explained, error.errors()))) from None


def _explained(item: Mapping[str, Any]) -> str:
    """A wrong setting, by the option that a user gave."""
    place, message = [str(part) for part in item["loc"]], str(item["msg"])
    if item["type"] == "value_error":
        return message.removeprefix("Value error, ")
    option = "-k" if place[0] == "k" else f"--{place[0].replace('_', '-')}"
    if place[0] == "engine":
        if item["type"].startswith("union_tag"):
            known = item["ctx"]["expected_tags"].replace("'", "")
            return f"--engine {item['input'].get('type')}: expected one of {known}"
        kind, key = place[1], ".".join(place[2:])
        option = _OF_ENGINE.get(key, f"--set {key}")
        if item["type"] == "extra_forbidden":
            return f"{option}: the {kind} engine has no such setting"
        if item["type"] == "missing":
            return f"{option}: the {kind} engine needs it"
    return f"{option}: {message} (got {item['input']!r})"
