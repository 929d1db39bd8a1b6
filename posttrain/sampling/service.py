"""Opens the sampling engine that a plan asks for.

Knows the kinds of engines and nothing of how they work.

    engine = open_engine(TransformersEngineSettings(), Path("rounds/tiny/base"), None)
"""

from pathlib import Path

from posttrain.generation import Engine
from posttrain.sampling.transformers_engine import TransformersEngine
from posttrain.sampling.vllm_engine import VllmEngine
from posttrain.settings.engines import EngineSettings, TransformersEngineSettings


def open_engine(settings: EngineSettings, model: Path, template: Path | None) -> Engine:
    """Load a model folder into the engine that `settings.type` names; the caller closes it.

    Raises:
        BadInput: the folder holds no usable model, or the engine is not installed.
        StepFailed: the engine could not start.
    """
    if isinstance(settings, TransformersEngineSettings):
        return TransformersEngine(model, settings, template)
    return VllmEngine(model, settings, template)
