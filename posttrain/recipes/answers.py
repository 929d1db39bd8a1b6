"""Answers to what hooks ask, remembered on disk, so that a killed step asks nothing twice.

Knows how a question is told from others and where answers lie. Knows no engine.

    answers = Answers(out.path / "work/answers.jsonl")
    generate = answers.remembered("generate", lambda requests: engine.generate(requests))
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from posttrain.rows import content_id

QuestionT = TypeVar("QuestionT")


class Answers:
    """A file of answers; each batch is on disk before any row hears of it."""

    def __init__(self, file: Path | None) -> None:
        """Read what was answered before; without a file nothing is remembered."""
        self._file = file
        self._known: dict[str, Any] = {}
        if file is not None and file.is_file():
            whole = file.read_bytes()
            # A last line without its end was being written when the step was killed.
            whole = whole[: whole.rfind(b"\n") + 1]
            file.write_bytes(whole)
            self._known = {row["key"]: row["answer"] for row in map(json.loads, whole.splitlines())}

    def remembered(
        self,
        kind: str,
        compute: Callable[[list[QuestionT]], list[Any]],
        content: Callable[[QuestionT], Any],
    ) -> Callable[[list[QuestionT]], list[Any]]:
        """Answers questions of a kind; those that were answered before are not asked again.

        Args:
            kind: Told apart from other kinds.
            compute: Answers, as JSON values, to questions.
            content: All that an answer depends on, as JSON values.
        """

        def answer(questions: list[QuestionT]) -> list[Any]:
            keys = [content_id([kind, content(one)]) for one in questions]
            fresh = {
                key: one for key, one in zip(keys, questions, strict=True) if key not in self._known
            }
            if fresh:
                found = dict(zip(fresh, compute(list(fresh.values())), strict=True))
                self._keep(found)
            return [self._known[key] for key in keys]

        return answer

    def _keep(self, found: dict[str, Any]) -> None:
        self._known |= found
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": key, "answer": one}) + "\n" for key, one in found.items()]
        with self._file.open("ab") as stream:
            stream.write("".join(lines).encode())
            stream.flush()
            os.fsync(stream.fileno())
