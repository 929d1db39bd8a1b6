"""The rows that travel between steps, in the shape Hugging Face and TRL take.

Knows what a message, prompt, candidate, example, preference, task and judgment are, how each gets
its id, and which split a prompt belongs to. Knows nothing of files (`posttrain.tables`)
or models. Extra columns of a user's row are kept as they came.

    Prompt.model_validate({"prompt": [{"role": "user", "content": "2+2"}], "capability": "math"})
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "dev", "test"]
Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length"]

ID_HEX_DIGITS = 16
CONTROL_TOKENS = "control_tokens.json"
"""Beside a round's tasks: `tokens`, texts that no edit may hold."""


_CANONICAL = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
)


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no NaN.

    Raises:
        TypeError: the value holds something without a stable JSON form.
        ValueError: the value holds NaN or an infinity.
    """
    return _CANONICAL.encode(value)


def content_id(value: object) -> str:
    """The first 16 hex digits of the sha256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:ID_HEX_DIGITS]


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2**31) that depends on the parts alone, not on order of work or machine."""
    return int(hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    def to_json(self) -> dict[str, Any]:
        """The row as it stands in a file: unset optional fields left out."""
        return self.model_dump(mode="json", exclude_none=True)


class Message(_Frozen):
    """One turn of a dialog, as chat templates read it."""

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] | None = None


Messages = Annotated[tuple[Message, ...], Field(min_length=1)]
Tools = tuple[dict[str, Any], ...]


def check_dialog(messages: Sequence[Message]) -> None:
    """Check that roles follow a chat: at most one system turn first, then user, alternating.

    Tool turns may follow an assistant turn that called tools.

    Raises:
        ValueError: naming the turn that does not fit.
    """
    turns = list(messages)
    if turns and turns[0].role == "system":
        turns = turns[1:]
    allowed = {"user"}
    for number, turn in enumerate(turns):
        if turn.role not in allowed:
            expected = " or ".join(sorted(allowed))
            raise ValueError(f"turn {number} is {turn.role}, expected {expected}")
        if turn.role == "user" and not turn.content.strip():
            raise ValueError(f"turn {number} (user) is empty")
        if turn.role == "assistant" and not turn.content.strip() and not turn.tool_calls:
            raise ValueError(f"turn {number} (assistant) is empty")
        if turn.role == "user":
            allowed = {"assistant"}
        elif turn.role == "assistant":
            allowed = {"tool"} if turn.tool_calls else {"user"}
        else:
            allowed = {"assistant", "tool"}


def prompt_hash(prompt: Sequence[Message]) -> str:
    """The identity of a prompt for splitting: its turns without system prompts, white space folded.

    System prompts are left out so that a steered copy of a test prompt can never be trained on.
    """
    return content_id([[m.role, " ".join(m.content.split())] for m in prompt if m.role != "system"])


def split_of(prompt: Sequence[Message], dev_share: float, test_share: float) -> Split:
    """Which of train, dev and test a prompt belongs to, from the hash of its first turn alone.

    Every turn of a dialog falls into one split, so a longer dialog cannot carry a test prompt
    into training.
    """
    opening = [m for m in prompt if m.role != "system"][:1]
    place = int(prompt_hash(opening)[:8], 16) / 0x1_0000_0000
    if place < test_share:
        return "test"
    return "dev" if place < test_share + dev_share else "train"


def _plain(value: Any) -> Any:
    """A value with its messages as they stand in a file."""
    if isinstance(value, Message):
        return value.to_json()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


class _Row(_Frozen):
    """A row with an id: its own if it came with one, else a hash of its content."""

    id: str = Field(default="", min_length=0)
    parents: tuple[str, ...] = ()
    """Ids of the rows this one was made from."""

    @model_validator(mode="before")
    @classmethod
    def _give_id(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("id"):
            return data
        plain = {key: _plain(value) for key, value in data.items() if key != "id"}
        try:
            return {**data, "id": content_id(plain)}
        except TypeError as error:
            raise ValueError(f"a row without an id must be plain JSON ({error})") from error


class Prompt(_Row):
    """A dialog that ends with a user turn and waits for a response."""

    prompt: Messages
    capability: str
    source: str = ""
    round: int | None = None
    level: int | None = None
    """Rung on the capability's ladder of difficulty, 1 the easiest."""
    reference: dict[str, Any] = {}
    """What a verifier needs: an answer, tests, a schema."""
    tools: Tools | None = None
    """Function schemas shown to the model through the chat template."""

    @model_validator(mode="after")
    def _ends_with_user(self) -> Self:
        check_dialog(self.prompt)
        if self.prompt[-1].role not in ("user", "tool"):
            raise ValueError(f"a prompt ends with a user turn, not {self.prompt[-1].role}")
        return self


class Candidate(_Row):
    """One sampled response. `id` is the prompt's id, a slash, and the sample's index."""

    prompt_id: str
    messages: Messages
    """The prompt as it was sent, then the response."""
    tools: Tools | None = None
    """Function schemas shown to the model through the chat template."""
    seed: int
    finish_reason: FinishReason
    num_tokens: Annotated[int, Field(ge=0)]
    system_id: str | None = None
    """Which steering system prompt produced it."""
    model: str
    capability: str = ""
    score: float | None = None
    """Reward model's score (unbounded, higher is better)."""
    passed: bool | None = None
    """The verifier's verdict; None where the recipe has no verifier."""

    @property
    def response(self) -> str:
        """The text of the last turn."""
        return self.messages[-1].content


class Document(_Row):
    """Raw text to go on pre-training with."""

    text: Annotated[str, Field(min_length=1)]
    source: str = ""
    """Name of the plan's source that it belongs to."""


class Example(_Row):
    """A dialog to train on with SFT; assistant turns are targets."""

    messages: Messages
    tools: Tools | None = None
    """Function schemas shown to the model through the chat template."""
    capability: str
    source: str = ""
    round: int | None = None
    edits: tuple[str, ...] | None = None
    """Names of the cleaning rules that changed the row."""
    repeat: Annotated[int, Field(ge=1)] = 1
    """How often SFT sees the row in an epoch."""

    @model_validator(mode="after")
    def _ends_with_assistant(self) -> Self:
        check_dialog(self.messages)
        if self.messages[-1].role != "assistant":
            raise ValueError(
                f"an example ends with an assistant turn, not {self.messages[-1].role}"
            )
        return self


class MadeExample(Example):
    """An example that a recipe made."""

    score: float | None = None
    """Reward model's score."""


class Strength(StrEnum):
    """How much better the chosen response is (section 4.2.1), weakest first."""

    MARGINALLY = "marginally better"
    SLIGHTLY = "slightly better"
    BETTER = "better"
    SIGNIFICANTLY = "significantly better"

    @property
    def level(self) -> int:
        """0 for marginally better to 3 for significantly better."""
        return list(Strength).index(self)


class Preference(_Row):
    """A judged pair (or a ranking, best first) of responses to one prompt.

    Either `chosen`, `rejected` and optionally `edited`, or `ranked` with two or more responses.
    The reward model learns edited > chosen > rejected; DPO learns (edited or chosen) > rejected.
    """

    prompt: Messages
    chosen: Messages | None = None
    rejected: Messages | None = None
    edited: Messages | None = None
    ranked: tuple[Messages, ...] | None = None
    tools: Tools | None = None
    """Function schemas shown to the model through the chat template."""
    strength: Strength
    capability: str = ""
    batch: str = ""
    """Which collection it came from, e.g. `round-2`."""

    @model_validator(mode="after")
    def _is_a_ranking(self) -> Self:
        pair = self.chosen is not None and self.rejected is not None
        if pair == (self.ranked is not None):
            raise ValueError("give either chosen and rejected, or ranked (best first)")
        if self.ranked is not None and (self.edited or self.chosen or self.rejected):
            raise ValueError("ranked holds every response: leave out chosen, rejected, edited")
        best_first = self.ranking()
        if len(best_first) < 2:
            raise ValueError("a ranking needs at least two responses")
        for response in best_first:
            check_dialog((*self.prompt, *response))
            if response[-1].role != "assistant":
                raise ValueError(f"a response ends with an assistant turn, not {response[-1].role}")
        texts = [canonical_json([m.to_json() for m in r]) for r in best_first]
        if self.edited is not None and texts[0] == texts[-1]:
            raise ValueError("edited equals rejected")
        if len(set(texts)) < len(texts):
            raise ValueError("two responses of the ranking are equal")
        return self

    def ranking(self) -> tuple[tuple[Message, ...], ...]:
        """All responses, best first: edited > chosen > rejected (section 4.1.2)."""
        if self.ranked is not None:
            return self.ranked
        assert self.chosen is not None and self.rejected is not None
        pair = (self.chosen, self.rejected)
        return (self.edited, *pair) if self.edited is not None else pair


class Task(_Row):
    """Two responses to one prompt from two different models, waiting for a judgment."""

    prompt: Messages
    a: Messages
    b: Messages
    tools: Tools | None = None
    """Function schemas shown to the model through the chat template."""
    model_a: str
    model_b: str
    capability: str
    batch: str
    times: Annotated[int, Field(ge=1)] | None = None
    """Annotators that judge it; None is one."""
    gold: Literal["a", "b"] | None = None
    """The response that is known to be better: the task checks annotators, and makes no
    preference."""

    def sides(self, first: Literal["a", "b"]) -> tuple[Messages, Messages]:
        """Both responses, that one first: as shown, or chosen and rejected."""
        return (self.a, self.b) if first == "a" else (self.b, self.a)

    @model_validator(mode="after")
    def _two_models(self) -> Self:
        if self.model_a == self.model_b:
            raise ValueError(f"both responses come from {self.model_a}")
        return self


class Judgment(_Row):
    """A person's answer to a task. Ties and skips are judgments, never preferences."""

    task: str
    choice: Literal["a", "b", "tie", "skip"]
    strength: Strength | None = None
    edited: Messages | None = None
    annotator: str
    reason: str = ""
    first: Literal["a", "b"] | None = None
    """Which response was shown first (or on the left)."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """From seeing the task to the judgment."""
    at: str | None = None
    """When it was made, ISO 8601 with its offset."""

    @property
    def scale(self) -> int | None:
        """−4 (a significantly better) to 4 (b significantly better), 0 a tie; None for a skip."""
        if self.choice == "skip":
            return None
        if self.strength is None:
            return 0
        return (self.strength.level + 1) * (1 if self.choice == "b" else -1)

    @model_validator(mode="after")
    def _strength_when_chosen(self) -> Self:
        if (self.choice in ("a", "b")) != (self.strength is not None):
            raise ValueError("strength belongs to choice a or b, and to nothing else")
        return self
