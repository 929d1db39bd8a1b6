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


class KeptEngine:
    """One engine for several models, one after another: its start takes longer than new weights."""

    def __init__(
        self, settings: EngineSettings, template: Path | None, device: Device = "auto"
    ) -> None:
        """Opens nothing yet; see `open_engine`."""
        self._settings, self._template, self._device = settings, template, device
        self._engine: Engine | None = None

    def holding(self, model: Path) -> Engine:
        """The engine with a model's weights; what it cached of others is forgotten.

        Raises:
            BadInput, StepFailed: see `open_engine` and `Engine.reload`.
        """
        if self._engine is None:
            self._engine = open_engine(self._settings, model, self._template, self._device)
        else:
            self._engine.reload(model)
        return self._engine

    def close(self) -> None:
        """Give the engine back, if it was ever opened."""
        if self._engine is not None:
            self._engine.close()
