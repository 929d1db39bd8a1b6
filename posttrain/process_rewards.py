"""Step-wise scores of a solution by a process reward model (section 4.3.3).

Knows models as TRL's PRM trainer saves them: a token classifier of two labels that answers at the
separator after each step whether the step is right. Knows nothing of recipes.

    ProcessScorer(Path("models/prm")).score("2+2+1?", ["2+2=4", "4+1=5"])   # [0.98, 0.97]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from posttrain.errors import BadInput

SEPARATOR = "\n"
"""After the question and after each step, as TRL's trainer writes it."""


class ProcessScorer:
    """A process reward model in memory."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Load model and tokenizer.

        Raises:
            BadInput: no such model, or none with two labels.
        """
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self._model: Any = AutoModelForTokenClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise BadInput(f"{folder}: no process reward model can be loaded ({error})") from error
        if self._model.config.num_labels != 2:
            raise BadInput(
                f"{folder}: a process reward model has two labels (wrong, right), this one has "
                f"{self._model.config.num_labels}"
            )
        self._model.to(device).eval()
        self._device = device

    def score(self, question: str, steps: Sequence[str]) -> list[float]:
        """Probability that each step is right, given the steps before it.

        Raises:
            BadInput: there is no step, or they do not fit the model's context.
        """
        if not steps:
            raise BadInput("a process reward model needs at least one step")
        ids = [] if self._tokenizer.bos_token_id is None else [self._tokenizer.bos_token_id]
        ids += self._ids(question)
        ends = []
        for step in steps:
            ids += [*self._ids(step), *self._ids(SEPARATOR)]
            ends.append(len(ids) - 1)
        longest = getattr(self._model.config, "max_position_embeddings", len(ids))
        if len(ids) > longest:
            raise BadInput(f"{len(ids)} tokens of steps, the process reward model takes {longest}")
        with torch.inference_mode():
            logits_SL = self._model(torch.tensor([ids], device=self._device)).logits[0]
        right_S = logits_SL.float().softmax(-1)[ends, 1]
        return [float(one) for one in right_S]

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found
