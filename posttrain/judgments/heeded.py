"""Which judgments of a round's tasks are heeded: people's, and a judge's where it stands for them.

Knows judgments, who made them and what the plan asks of them; reads no file.

    found = heed(tasks, people, labels, annotator, confidence=0.95)
    found.by_task["round-1/q7"], found.dropped, found.told
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.judgments.quality import agreement_with, flagged, quality_of
from posttrain.rows import Judgment, Task
from posttrain.settings.annotation import Annotator, JudgeAnnotator, JudgeHelp, Quality

NOBODY = "nobody"
"""The annotator of a row that says: this task lacked judgments when its collection was closed."""
UNANSWERED = "unanswered"


@dataclass(frozen=True)
class Heeded:
    """What is left of a round's judgments."""

    by_task: dict[str, list[Judgment]]
    """Task's id → its judgments, in the order of the tasks."""
    dropped: list[tuple[str, str]]
    """Id of a judgment (or of a task without one) and why it states nothing."""
    told: dict[str, Any]
    """For the manifest and the report: see `quality_of`; `flagged`, `left_out` and `judge`."""

    def judgments(self) -> list[Judgment]:
        """All that are heeded."""
        return [one for some in self.by_task.values() for one in some]


def heed(
    tasks: Sequence[Task],
    people: Sequence[Judgment],
    labels: Sequence[Judgment],
    annotator: Annotator,
    confidence: float,
) -> Heeded:
    """Sort out whose judgments count.

    Args:
        tasks: All that were published.
        people: What people answered, `NOBODY`'s rows included.
        labels: What the judge said of the tasks; empty without one.
        annotator: What the plan asks of people and of the judge.
        confidence: Coverage of the intervals, between 0 and 1.
    """
    by_task: dict[str, list[Judgment]] = {task.id: [] for task in tasks}
    dropped: list[tuple[str, str]] = []
    given, closed = _once_each(people, dropped)
    if isinstance(annotator, JudgeAnnotator):
        told = quality_of(tasks, [], confidence)
        asked, help_wanted = Quality(), JudgeHelp(labels="all")
    else:
        told = quality_of(tasks, given, confidence)
        asked, help_wanted = annotator.quality, annotator.judge or JudgeHelp()
    bad = flagged(told["annotators"], asked)
    left_out = bad if asked.leave_out else []
    answered = {one.task for one in given}
    heard = [one for one in given if one.annotator not in left_out]
    for one in given:
        if one.annotator in left_out:
            dropped.append((one.id, f"left out: the judgments of {one.annotator}"))
        else:
            by_task[one.task].append(one)
    if left_out:
        told["agreement"] = quality_of(tasks, heard, confidence)["agreement"]
    told |= {"flagged": bad, "left_out": left_out}
    if labels:
        told["judge"] = agreement_with(labels, tasks, heard, confidence)
        told["judge"]["name"] = labels[0].annotator
    heeded = _stand_ins(tasks, by_task, labels, help_wanted, told)
    for task in tasks:
        if task.id in heeded:
            by_task[task.id] = [heeded[task.id]]
        elif task.id not in answered | closed and task.gold is None:
            dropped.append((task.id, UNANSWERED))
    return Heeded(by_task, dropped, told)


def _once_each(
    people: Sequence[Judgment], dropped: list[tuple[str, str]]
) -> tuple[list[Judgment], set[str]]:
    """The first judgment of each person on a task, and the tasks that were closed without."""
    seen: set[tuple[str, str]] = set()
    given, closed = [], set()
    for one in people:
        if one.annotator == NOBODY:
            closed.add(one.task)
            dropped.append((one.id, f"{UNANSWERED}: the collection was closed"))
        elif (one.task, one.annotator) in seen:
            dropped.append((one.id, "judged before by the same annotator"))
        else:
            seen.add((one.task, one.annotator))
            given.append(one)
    return given, closed


def _stand_ins(
    tasks: Sequence[Task],
    by_task: Mapping[str, Sequence[Judgment]],
    labels: Sequence[Judgment],
    wanted: JudgeHelp,
    told: dict[str, Any],
) -> dict[str, Judgment]:
    """The judge's judgments of tasks that nobody judged, where the plan heeds them."""
    if not labels or wanted.labels == "none":
        return {}
    rates = told["judge"]["by_capability"]
    trusted = {
        name
        for name, rate in rates.items()
        if rate["num"] >= wanted.min_shared and rate["value"] >= wanted.min_agreement
    }
    told["judge"]["trusted"] = "all" if wanted.labels == "all" else sorted(trusted)
    by_id: dict[str, Judgment] = {one.task: one for one in labels}
    capability = {task.id: task.capability for task in tasks if task.gold is None}
    found = {
        task_id: by_id[task_id]
        for task_id, some in by_task.items()
        if not some
        and task_id in by_id
        and task_id in capability
        and (wanted.labels == "all" or capability[task_id] in trusted)
    }
    told["judge"]["labelled"] = len(found)
    return found


def answered_share(tasks: Sequence[Task], people: Sequence[Judgment]) -> float:
    """Share of the wanted judgments that are there; a task that was closed wants none.

    Tasks with a known answer are asked for by nobody.
    """
    who: dict[str, set[str]] = defaultdict(set)
    for one in people:
        who[one.task].add(one.annotator)
    wanted = given = 0
    for task in tasks:
        if task.gold is None:
            times = task.times or 1
            wanted += times
            names = who[task.id]
            given += times if NOBODY in names else min(times, len(names))
    return given / wanted if wanted else 1.0
