"""What a step asks of a sampling engine, and what it gets back; the same for every engine.

Knows no engine. An engine that cannot do something a request asks for raises `BadInput`
naming the field, before it generates anything.

    Request(id="p1", messages=({"role": "user", "content": "2+2"},), n=4, seed=7)
"""

from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.rows import FinishReason, Messages


class Request(BaseModel):
    """n samples of one response. Sample i draws from `seed + i`, whatever else is in the batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    messages: Messages
    n: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)]
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)]
    stop: tuple[str, ...] = ()
    """Texts that end a response; they are left out of it."""
    logprobs: bool = False
    """Whether to return the log-probability of each sampled token."""
    choices: tuple[str, ...] = ()
    """The response must be one of these."""
    json_schema: dict[str, Any] | None = None
    """The response must be JSON that fits this schema."""
    tools: tuple[dict[str, Any], ...] = ()
    """Function schemas shown to the model through the chat template."""

    @model_validator(mode="after")
    def _one_grammar(self) -> Self:
        if self.choices and self.json_schema is not None:
            raise ValueError("choices and json_schema exclude each other")
        return self


class Sample(BaseModel):
    """One response: text without its end token, and how it ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    """`stop` when the model ended the turn itself, `length` when it was cut at max_tokens."""
    logprobs: tuple[float, ...] | None = None
    """Natural log, one per token of token_ids, under the sampling distribution's model at T = 1."""


class Generates(Protocol):
    """Something that answers requests, and can be asked again after it failed."""

    def generate(self, requests: list[Request]) -> list[list[Sample]]:
        """One list of n samples per request, in the requests' order.

        Raises:
            BadInput: a request asks for something this engine cannot do, or its prompt leaves
                no room for max_tokens in the model's context.
            StepFailed: the engine died or ran out of memory; after `restart` it may do less.
        """
        ...

    def restart(self) -> None:
        """Start afresh with the same model after a failure.

        Raises:
            StepFailed: that did not help.
        """
        ...


class Engine(Generates, Protocol):
    """A loaded model that answers requests."""

    def reload(self, model_folder: Path) -> None:
        """Hold another model in place of this one.

        Raises:
            BadInput: the folder does not fit what was opened; open a new engine for it.
            StepFailed: the model could not be loaded.
        """
        ...

    def close(self) -> None:
        """Give back the memory and end every process of the engine."""
        ...
