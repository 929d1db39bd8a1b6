"""Opens the sampling engine that a plan asks for.

Knows the kinds of engines and nothing of how they work.

    engine = open_engine(TransformersEngineSettings(), Path("rounds/tiny/base"), None)
"""

from pathlib import Path

from posttrain.generation import Engine
from posttrain.models.devices import Device
from posttrain.sampling.transformers_engine import TransformersEngine
from posttrain.sampling.vllm_engine import VllmEngine
from posttrain.settings.engines import EngineSettings, TransformersEngineSettings


def open_engine(
    settings: EngineSettings, model: Path, template: Path | None, device: Device = "auto"
) -> Engine:
    """Load a model folder into the engine that `settings.type` names; the caller closes it.

    Args:
        settings: The engine's settings.
        model: A Hugging Face model folder.
        template: Chat template in place of the tokenizer's own.
        device: Where transformers computes, as `resources.device` says it. vLLM computes on what
            its installation was built for.

    Raises:
        BadInput: the folder holds no usable model, the engine is not installed, or the device is
            missing.
        StepFailed: the engine could not start.
    """
    if isinstance(settings, TransformersEngineSettings):
        return TransformersEngine(model, settings, template, device)
    return VllmEngine(model, settings, template)
