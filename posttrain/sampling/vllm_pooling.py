"""Scores rows of tokens with vLLM, in worker processes of its own that end with the scorer.

Knows token ids and a model with a score head; what a row says and whether it fits the model's
context is `posttrain.scoring`'s affair. vLLM pads nothing: it reads each row's last token.

    pooling = VllmPooling(Path("runs/my/round-1/rm/model"), VllmEngineSettings(type="vllm"))
    pooling.scores([[1, 17, 4], [1, 9, 9, 4]])
"""

from collections.abc import Sequence
from pathlib import Path

from posttrain.sampling.vllm_workers import VllmWorkers, model_options
from posttrain.settings.engines import VllmEngineSettings


class VllmPooling:
    """One or more vLLM workers with the same reward model."""

    def __init__(self, model_folder: Path, settings: VllmEngineSettings) -> None:
        """Start the workers and load the model.

        Args:
            model_folder: a model folder with a head of one label.
            settings: interpreter, dtype, memory and parallelism.

        Raises:
            BadInput: vLLM is not installed.
            StepFailed: vLLM could not load the model; with the end of its log.
        """
        options = {
            **model_options(model_folder, settings),
            "runner": "pooling",
            # A row's score must not depend on which rows came before it.
            "enable_prefix_caching": False,
        }
        self._workers = VllmWorkers(settings, options)

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """One score a row, in their order, as the head gives it.

        Raises:
            BadInput: vLLM refuses a row, e.g. one longer than its context.
            StepFailed: a worker died; the scorer is closed.
        """
        count = len(self._workers)
        dealt = [
            {"do": "score", "prompts": [list(row) for row in rows[place::count]]}
            for place in range(count)
        ]
        answers = self._workers.ask(dealt, None)
        return [answers[i % count]["scores"][i // count] for i in range(len(rows))]

    def close(self) -> None:
        """End every process."""
        self._workers.close()
