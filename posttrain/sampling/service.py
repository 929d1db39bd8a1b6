"""Opens the sampling engine that a plan asks for.

Knows the kinds of engines and nothing of how they work.

    engine = open_engine(TransformersEngineSettings(), Path("rounds/tiny/base"), None)
"""

from pathlib import Path

from posttrain.generation import Engine
from posttrain.models.devices import Device
from posttrain.sampling.openai_engine import OpenAIEngine
from posttrain.sampling.transformers_engine import TransformersEngine
from posttrain.sampling.vllm_engine import VllmEngine
from posttrain.settings.engines import (
    EngineSettings,
    OpenAIEngineSettings,
    TransformersEngineSettings,
)


def open_engine(
    settings: EngineSettings, model: Path, template: Path | None, device: Device = "auto"
) -> Engine:
    """Load a model folder into the engine that `settings.type` names; the caller closes it.

    Args:
        settings: The engine's settings.
        model: A Hugging Face model folder.
        template: Chat template in place of the tokenizer's own.
        device: Where transformers computes, as `resources.device` says it. vLLM computes on what
            its installation was built for, an endpoint where it was started.

    Raises:
        BadInput: the folder holds no usable model, the engine is not installed, the device is
            missing, or an endpoint serves another model.
        StepFailed: the engine could not start, or an endpoint does not answer.
    """
    if isinstance(settings, TransformersEngineSettings):
        return TransformersEngine(model, settings, template, device)
    if isinstance(settings, OpenAIEngineSettings):
        return OpenAIEngine(model, settings, template)
    return VllmEngine(model, settings, template)
