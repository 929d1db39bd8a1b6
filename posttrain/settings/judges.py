"""Who grades responses: nobody, rules that simulate a judge, a model in vLLM, or a server.

parse(EndpointJudge, {"type": "openai", "url": "http://node:8000/v1", "model": "m"}, "my.yaml")
"""

from typing import Annotated, Literal

from pydantic import Field

from posttrain.settings.base import Settings
from posttrain.settings.engines import VllmEngineSettings


class NoJudge(Settings):
    """No judge: quality is the reward model's score alone."""

    type: Literal["none"] = "none"


class SimulatedJudge(Settings):
    """A simulated judge, for tests and the tiny plan."""

    type: Literal["simulated"]
    rules: str
    """A Python file with `grade`."""


class ModelJudgeBase(Settings):
    """What is asked of a language model."""

    rubric: str = "general"
    """The rubric of `data_quality/rubrics/` by which a response is graded."""
    rubrics: dict[str, str] = {"code": "code"}
    """The rubric of a capability that has its own."""
    difficulty: bool = False
    """Whether it also says how hard each prompt is, by `rubrics/difficulty.jinja`."""
    tags: bool = False
    """Whether it also names each prompt's intentions, by `rubrics/tags.jinja` (InsTag)."""


class VllmJudge(ModelJudgeBase):
    """A model folder in a vLLM of ours; its answers are bound to the rubric's grades."""

    type: Literal["vllm"]
    model: str
    """A Hugging Face model folder."""
    engine: VllmEngineSettings = VllmEngineSettings()


class EndpointJudge(ModelJudgeBase):
    """A server with OpenAI's chat route; an answer that is no grade leaves a response unscored."""

    type: Literal["openai"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")]
    """Where its routes lie, such as `http://localhost:8000/v1`."""
    model: str
    """The name that it serves the model by."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key."""
    concurrency: Annotated[int, Field(ge=1)] = 32
    """Questions in flight."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long one answer may take."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Further tries of a question that the server could not answer."""


Judge = Annotated[NoJudge | SimulatedJudge | VllmJudge | EndpointJudge, Field(discriminator="type")]
