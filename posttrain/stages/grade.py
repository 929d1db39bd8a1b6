"""The judge's opinion on each chosen response: its quality, and how hard its prompt is (4.2.3)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from posttrain.hook_rows import HookRows
from posttrain.hooks import Grade, Handle
from posttrain.judging.contract import Judge, Judged, Opinion
from posttrain.judging.model import ModelJudge
from posttrain.judging.opening import open_asker
from posttrain.judging.simulated import SimulatedJudge
from posttrain.rows import Candidate, Prompt
from posttrain.settings import judges
from posttrain.settings.stages import GradeStage, HookStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.workspace import load_functions

HOOK = "judge"
AT_ONCE = 512
"""Responses that are judged between two calls for progress."""


def run(inputs: Inputs, settings: GradeStage, out: Output) -> None:
    """Write `selected.jsonl`: the chosen responses with `grade`, `difficulty` and `tags`.

    A response of which the judge says nothing has none of these, and is counted as unscored.
    """
    prompts = {p.id: p for p in load_rows(inputs["prompts"] / "train.jsonl", Prompt)}
    rows = load_rows(inputs["chosen"] / "selected.jsonl", Candidate)
    judged = [_judged(row, prompts[row.prompt_id]) for row in rows]
    opinions, label = [Opinion()] * len(rows), "recipes' own hooks"
    if not isinstance(settings.judge, judges.NoJudge):
        opinions, label = _by_judge(inputs, settings.judge, judged, out)
    if settings.hooks is not None:
        opinions = _by_hooks(inputs, settings.hooks, judged, opinions, out)
    graded = [row.model_copy(update=_columns(o)) for row, o in zip(rows, opinions, strict=True)]
    out.write("selected", graded)
    out.part("grade", len(rows), len(rows))
    grades = Counter(o.grade.score if o.grade else None for o in opinions)
    unscored = grades.pop(None, 0)
    out.metrics(
        judge=label,
        unscored=unscored,
        grades={str(score): count for score, count in sorted(grades.items()) if score is not None},
    )


def _by_judge(
    inputs: Inputs, settings: judges.Judge, judged: Sequence[Judged], out: Output
) -> tuple[list[Opinion], str]:
    """The plan's judge on every row, and its name."""
    judge = _judge(inputs, settings)
    opinions: list[Opinion] = []
    with closing(judge):
        for start in range(0, len(judged), AT_ONCE):
            opinions += judge.grade(judged[start : start + AT_ONCE])
            out.progress(len(opinions), len(judged))
    return opinions, judge.label


def _by_hooks(
    inputs: Inputs,
    settings: HookStage,
    judged: Sequence[Judged],
    opinions: Sequence[Opinion],
    out: Output,
) -> list[Opinion]:
    """The opinions with the grades of recipes that have a `judge` hook in place of the others.

    Where the hook fails a row is unscored, and the reason is counted.
    """
    found, failed = list(opinions), Counter[str]()
    with closing(HookRows(inputs, settings, out)) as hooks:
        for capability, recipe in hooks.recipes.items():
            if HOOK not in recipe.hooks:
                continue
            mine = [at for at, one in enumerate(judged) if one.prompt.capability == capability]
            tasks = [
                (judged[at].candidate.id, partial(_grade, recipe.hooks[HOOK], judged[at]))
                for at in mine
            ]
            for at in mine:
                found[at] = found[at]._replace(grade=None)
            for at, outcome in zip(mine, hooks.run(capability, HOOK, tasks), strict=False):
                found[at] = found[at]._replace(grade=outcome.value)
                if outcome.problem:
                    failed[f"{capability}.{HOOK}: {outcome.problem}"] += 1
    out.metrics(failed=dict(sorted(failed.items())))
    return found


def _grade(function: Callable[..., Grade | None], one: Judged, handle: Handle) -> Grade | None:
    found = function(one.candidate, one.prompt, handle)
    if found is not None and not isinstance(found, Grade):
        raise TypeError(f"answered {type(found).__name__}, expected a Grade or None")
    return found


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
