"""The judge's opinion on each chosen response: its quality, and how hard its prompt is (4.2.3)."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from posttrain.judging.contract import Judge, Judged, Opinion
from posttrain.judging.model import ModelJudge
from posttrain.judging.opening import open_asker
from posttrain.judging.simulated import SimulatedJudge
from posttrain.rows import Candidate, Prompt
from posttrain.settings import judges
from posttrain.settings.stages import GradeStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.workspace import load_functions

AT_ONCE = 512
"""Responses that are judged between two calls for progress."""


def run(inputs: Inputs, settings: GradeStage, out: Output) -> None:
    """Write `selected.jsonl`: the chosen responses with `grade`, `difficulty` and `tags`.

    A response of which the judge says nothing has none of these, and is counted as unscored.
    """
    prompts = {p.id: p for p in load_rows(inputs["prompts"] / "train.jsonl", Prompt)}
    rows = load_rows(inputs["chosen"] / "selected.jsonl", Candidate)
    judged = [_judged(row, prompts[row.prompt_id]) for row in rows]
    judge = _judge(inputs, settings.judge)
    opinions: list[Opinion] = []
    try:
        for start in range(0, len(judged), AT_ONCE):
            opinions += judge.grade(judged[start : start + AT_ONCE])
            out.progress(len(opinions), len(judged))
    finally:
        judge.close()
    graded = [row.model_copy(update=_columns(o)) for row, o in zip(rows, opinions, strict=True)]
    out.write("selected", graded)
    out.part("grade", len(rows), len(rows))
    grades = Counter(o.grade.score if o.grade else None for o in opinions)
    unscored = grades.pop(None, 0)
    out.metrics(
        judge=judge.label,
        unscored=unscored,
        grades={str(score): count for score, count in sorted(grades.items()) if score is not None},
    )


def _judged(row: Candidate, prompt: Prompt) -> Judged:
    return Judged(row, prompt, (row.model_extra or {}).get("passed") is not False)


def _columns(opinion: Opinion) -> Mapping[str, Any]:
    grade = opinion.grade
    columns = {
        "grade": {"score": grade.score, "maximum": grade.maximum} if grade else None,
        "difficulty": opinion.difficulty,
        "tags": list(opinion.tags) if opinion.tags else None,
    }
    return {name: value for name, value in columns.items() if value is not None}


def _judge(inputs: Inputs, settings: judges.Judge) -> Judge:
    if isinstance(settings, judges.SimulatedJudge):
        return SimulatedJudge(inputs["judge"], load_functions)
    assert isinstance(settings, judges.VllmJudge | judges.EndpointJudge)
    asker = open_asker(inputs, settings)
    return ModelJudge(
        asker, lambda name: inputs[f"rubric:{name}"], settings, f"judge {settings.model}"
    )
