"""The collection of a round: where its tasks and judgments lie, and how it ends.

Knows a run's folders. What round N published is judged here, and becomes the file of answers that
the first step of round N + 1 waits for.

    collection = open_collection(run, 1)
    collection.store.next_task("ana")
    collection.close()          # writes annotations/PLAN/round-1.jsonl
"""

import os
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.annotate.store import Store
from posttrain.controller import Run
from posttrain.errors import BadInput
from posttrain.judgments.heeded import NOBODY
from posttrain.judgments.quality import CONFIDENCE, quality_of
from posttrain.rows import CONTROL_TOKENS, Judgment, Task
from posttrain.settings.annotation import FileAnnotator
from posttrain.steps.step import Step
from posttrain.tables import load_rows, read_json, write_rows


@dataclass(frozen=True)
class Collection:
    """A round's tasks while they are judged."""

    title: str
    number: int
    """The round that published the tasks."""
    store: Store
    answers: Path
    """Where the next round looks for the judgments."""
    tasks: Sequence[Task]
    min_answered: float
    """Share of the wanted judgments with which the next round goes on."""

    def close(self) -> int:
        """End the collection and hand the judgments on; how many there are.

        Nothing is taken from here on, so the file holds all that was, and for each task that lacks
        judgments a row that says so. Killed in between, the same command writes the file.

        Raises:
            BadInput: somebody has put another file there.
        """
        if self.answers.exists() and not self.store.closed:
            raise BadInput(
                f"{self.answers} is there already, and this collection did not write it; move it "
                "away, or let the next round go on with it"
            )
        self.store.close()
        judgments = self.store.judgments()
        # A round that begins beside this command writes the same rows.
        own = self.answers.with_suffix(f".{os.getpid()}.jsonl")
        write_rows(own, [*judgments, *_lacking(self.tasks, judgments)])
        own.replace(self.answers)
        return len(judgments)

    def own_token(self, name: str) -> str:
        """The token of whoever judges alone, the same at each start, so that an open page lasts."""
        file = self.answers.with_suffix(".link")
        if file.is_file():
            token = file.read_text().strip()
            if self.store.annotator_of(token) == name:
                return token
        token = self.store.add_annotator(name)
        file.touch(mode=0o600)
        file.chmod(0o600)
        file.write_text(token + "\n")
        return token

    def status(self) -> dict[str, Any]:
        """How far it is, who did how much and how well; for JSON."""
        progress = self.store.progress()
        told = quality_of(self.tasks, self.store.judgments(), CONFIDENCE)
        unheard = [name for name in self.store.annotators() if name not in told["annotators"]]
        return {
            "tasks": sum(task.gold is None for task in self.tasks),
            "judgments": progress.judged,
            "wanted": progress.judgments_wanted,
            "closed": self.store.closed,
            **told,
            "yet_to_begin": unheard,
        }

    def suffices(self) -> bool:
        """Whether the plan's minimum is met."""
        progress = self.store.progress()
        return progress.judged >= self.min_answered * progress.judgments_wanted

    def missing(self) -> str:
        """What the next round waits for, in words."""
        progress = self.store.progress()
        return (
            f"{progress.judged} of {progress.judgments_wanted} judgments are in, "
            f"annotator.min_answered asks for {self.min_answered:.0%}; posttrain annotate close "
            f"{self.number} goes on with what there is"
        )


def _lacking(tasks: Sequence[Task], judgments: Sequence[Judgment]) -> list[Judgment]:
    """A row of nobody's for each task that got fewer judgments than it wanted."""
    num = Counter(one.task for one in judgments)
    return [
        Judgment(
            id=f"{task.id}/{NOBODY}",
            parents=(task.id,),
            task=task.id,
            choice="skip",
            annotator=NOBODY,
            reason=f"{num[task.id]} of {task.times or 1} judgments when the collection was closed",
        )
        for task in tasks
        if task.gold is None and num[task.id] < (task.times or 1)
    ]


def open_collection(run: Run, number: int, lease_seconds: float = 1800.0) -> Collection:
    """The collection of the tasks that a round published.

    Raises:
        BadInput: the round has published none, nobody waits for them, or nobody is asked: the
            plan's people are simulated, or its judge answers alone.
    """
    following = run.steps.get(f"round-{number + 1}/preferences")
    if following is None or f"round-{number}/tasks" not in run.steps:
        raise BadInput(f"round {number} publishes no tasks: no later round waits for judgments")
    answers, annotator = following.files.get("answers"), run.plan.annotator
    if answers is None or not isinstance(annotator, FileAnnotator):
        raise BadInput(
            f"the tasks of round {number} are answered by annotator.type: {annotator.type}; "
            "people are asked where it is `file`"
        )
    file = run.folder.root / f"round-{number}" / "tasks" / "tasks.jsonl"
    if not file.is_file():
        raise BadInput(f"round {number} has not published its tasks yet: {file} is missing")
    tasks = load_rows(file, Task)
    store = Store(_file_of(answers), lease_seconds)
    gold = run.plan.tasks.gold
    forbidden = read_json(file.with_name(CONTROL_TOKENS))["tokens"]
    store.publish(tasks, gold.share if gold is not None else 0.0, forbidden)
    title = f"{run.plan.title or run.name}, round {number}"
    return Collection(title, number, store, answers, tasks, annotator.min_answered)


class Settled(NamedTuple):
    """Collections that some steps wait for, each in a line."""

    closed: list[str]
    """Closed since they had enough judgments, or written out since they were closed before."""
    still_open: list[str]
    """What they lack."""


def settle(run: Run, steps: Iterable[Step]) -> Settled:
    """Close the collections that these steps wait for and that have enough judgments."""
    told = Settled([], [])
    for step in steps:
        answers = step.files.get("answers")
        if answers is None or answers.exists() or not _file_of(answers).is_file():
            continue
        if run.folder.state(step.inputs["tasks"]).kind != "done":
            # Its tasks are made first, or made again.
            continue
        number = step.round - 1
        collection = open_collection(run, number)
        if collection.store.closed or collection.suffices():
            num = collection.close()
            told.closed.append(f"the collection of round {number} is closed: {num} judgments")
        else:
            told.still_open.append(collection.missing())
    return told


def _file_of(answers: Path) -> Path:
    """The collection whose judgments become a file of answers."""
    return answers.with_suffix(".sqlite")


def address(host: str, port: int) -> str:
    """Where somebody's browser finds a server that listens on a host."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(host: str) -> bool:
    """Whether nobody but this machine can ask."""
    return host in ("127.0.0.1", "localhost", "::1")
