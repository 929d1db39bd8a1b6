"""A judge answers the round's tasks as people do, each in both orders.

What its verdicts are heeded for, the next round's first step decides, beside people's answers.
"""

from contextlib import closing

from posttrain.judging import simulated
from posttrain.judging.opening import open_asker
from posttrain.judging.pairs import (
    TIE,
    Comparer,
    ModelComparer,
    SimulatedComparer,
    Verdicts,
    judgment_of,
)
from posttrain.rows import Task
from posttrain.settings.judges import NoJudge, SimulatedJudge
from posttrain.settings.stages import LabelStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.verifying import verifier_of
from posttrain.workspace import load_functions

AT_ONCE = 512
"""Tasks that are compared between two calls for progress."""
UNSCORED = "unscored: the judge gave no verdict"


def run(inputs: Inputs, settings: LabelStage, out: Output) -> None:
    """Write `judgments.jsonl`; a task that the judge gives no two verdicts on stays unlabelled."""
    tasks = load_rows(inputs["tasks"] / "tasks.jsonl", Task)
    with closing(_comparer(inputs, settings)) as comparer:
        verdicts: list[Verdicts] = []
        for start in range(0, len(tasks), AT_ONCE):
            verdicts += comparer.compare(tasks[start : start + AT_ONCE])
            out.progress(len(verdicts), len(tasks))
        made = [
            judgment_of(task, one, comparer.label)
            for task, one in zip(tasks, verdicts, strict=True)
        ]
    for task, judgment in zip(tasks, made, strict=True):
        if judgment is None:
            out.drop(task.id, UNSCORED)
    kept = [judgment for judgment in made if judgment is not None]
    out.write("judgments", kept)
    out.part("label", len(tasks), len(kept))
    said = [grade for one in verdicts for grade in one if grade is not None and grade != TIE]
    out.metrics(
        judge=comparer.label,
        unscored=len(tasks) - len(kept),
        flipped=sum((f - TIE) * (TIE - b) < 0 for f, b in verdicts if f and b),
        first_share=sum(grade < TIE for grade in said) / len(said) if said else None,
    )


def _comparer(inputs: Inputs, settings: LabelStage) -> Comparer:
    judge = settings.judge
    assert not isinstance(judge, NoJudge)
    if not isinstance(judge, SimulatedJudge):
        return ModelComparer(open_asker(inputs, judge), inputs["rubric"], f"judge {judge.model}")
    verify = verifier_of(inputs, settings.recipes).passed
    return SimulatedComparer(simulated.SimulatedJudge(inputs["judge"], load_functions), verify)
