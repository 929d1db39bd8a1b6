"""A language model as judge: rubrics for quality and difficulty, and the tags of InsTag.

Knows which rubric a capability has and how answers are read; who answers, `askers` knows. The
paper's scales: three points for general answers, two for code, three for difficulty (4.2.3).

    ModelJudge(asker, RubricFiles(Path("data_quality/rubrics")), settings, "judge model-x")
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from posttrain.hooks import Grade
from posttrain.judging.askers import Asker, Question
from posttrain.judging.contract import Judged, Opinion
from posttrain.judging.rubrics import Rubric, render_rubric
from posttrain.settings.judges import ModelJudgeBase

TAGS = {
    "type": "object",
    "properties": {
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 60},
            "minItems": 1,
            "maxItems": 12,
        }
    },
    "required": ["tags"],
    "additionalProperties": False,
}
TAG_TOKENS = 256


class ModelJudge:
    """Asks a model about each response."""

    def __init__(
        self, asker: Asker, rubric: Callable[[str], Path], settings: ModelJudgeBase, label: str
    ) -> None:
        """Asks nothing yet.

        Args:
            asker: who answers.
            rubric: the file of a rubric by name.
            settings: which rubrics, and whether difficulty and tags are asked for.
            label: what stands beside its grades.
        """
        self.label = label
        self._asker, self._rubric, self._settings = asker, rubric, settings

    def grade(self, rows: Sequence[Judged]) -> list[Opinion]:
        """An opinion on each response.

        Raises:
            BadInput: a rubric that cannot be filled in, or the model cannot be asked.
            StepFailed: the model stopped answering.
        """
        rubrics = [self._filled(self._quality(row), row) for row in rows]
        grades = self._scored(rubrics)
        opinions = [
            Opinion(None if score is None else Grade(score, rubric.scale[-1], self.label))
            for score, rubric in zip(grades, rubrics, strict=True)
        ]
        if self._settings.difficulty:
            hard = self._scored([self._filled("difficulty", row) for row in rows])
            opinions = [
                one._replace(difficulty=score) for one, score in zip(opinions, hard, strict=True)
            ]
        if self._settings.tags:
            texts = [self._filled("tags", row).text for row in rows]
            told = self._asker.ask([Question(t, (), TAGS, TAG_TOKENS) for t in texts])
            opinions = [
                one._replace(tags=read_tags(answer))
                for one, answer in zip(opinions, told, strict=True)
            ]
        return opinions

    def close(self) -> None:
        """Let the model go."""
        self._asker.close()

    def _quality(self, row: Judged) -> str:
        return self._settings.rubrics.get(row.prompt.capability, self._settings.rubric)

    def _filled(self, name: str, row: Judged) -> Rubric:
        variables: Mapping[str, object] = {
            "dialog": [turn.to_json() for turn in row.prompt.prompt],
            "response": row.candidate.response,
        }
        return render_rubric(self._rubric(name), variables)

    def _scored(self, rubrics: Sequence[Rubric]) -> list[int | None]:
        questions = [
            Question(rubric.text, tuple(str(grade) for grade in rubric.scale)) for rubric in rubrics
        ]
        answers = self._asker.ask(questions)
        return [
            read_grade(answer, rubric.scale)
            for answer, rubric in zip(answers, rubrics, strict=True)
        ]


def read_grade(answer: str | None, scale: Sequence[int]) -> int | None:
    """The grade that an answer is; None where it is none of the scale's and nothing else."""
    text = (answer or "").strip()
    return int(text) if text.isdecimal() and int(text) in scale else None


def read_tags(answer: str | None) -> tuple[str, ...] | None:
    """The tags of an answer; None where it is no list of them."""
    try:
        tags = json.loads(answer or "")["tags"]
    except (ValueError, LookupError, TypeError):
        return None
    if not isinstance(tags, list) or not tags or not all(isinstance(tag, str) for tag in tags):
        return None
    return tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip())) or None
