"""The collection of a round: where its tasks and judgments lie, and how it ends.

Knows a run's folders. What round N published is judged here, and becomes the file of answers that
the first step of round N + 1 waits for.

    collection = open_collection(run, 1)
    collection.store.next_task("ana")
    collection.close()          # writes annotations/PLAN/round-1.jsonl
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.annotate.store import Store
from posttrain.controller import Run
from posttrain.errors import BadInput
from posttrain.rows import Task
from posttrain.tables import load_rows, write_rows


@dataclass(frozen=True)
class Collection:
    """A round's tasks while they are judged."""

    title: str
    store: Store
    answers: Path
    """Where the next round looks for the judgments."""
    tasks: Sequence[Task]

    def close(self) -> int:
        """End the collection and hand the judgments on; how many there are.

        Nothing is taken from here on, so the file holds all that was. Killed in between, the same
        command writes the file.
        """
        self.store.close()
        judgments = self.store.judgments()
        write_rows(self.answers, judgments)
        return len(judgments)


def open_collection(run: Run, number: int, lease_seconds: float = 1800.0) -> Collection:
    """The collection of the tasks that a round published.

    Raises:
        BadInput: the round has published none, nobody waits for them, or nobody is asked: the
            plan's people are simulated.
    """
    following = run.steps.get(f"round-{number + 1}/preferences")
    if following is None or f"round-{number}/tasks" not in run.steps:
        raise BadInput(f"round {number} publishes no tasks: no later round waits for judgments")
    answers = following.files.get("answers")
    if answers is None:
        raise BadInput(
            f"the tasks of round {number} are answered by annotator.type: "
            f"{run.plan.annotator.type}; people are asked where it is `file`"
        )
    file = run.folder.root / f"round-{number}" / "tasks" / "tasks.jsonl"
    if not file.is_file():
        raise BadInput(f"round {number} has not published its tasks yet: {file} is missing")
    tasks = load_rows(file, Task)
    store = Store(answers.with_suffix(".sqlite"), lease_seconds)
    store.publish(tasks)
    title = f"{run.plan.title or run.name}, round {number}"
    return Collection(title, store, answers, tasks)


def is_local(host: str) -> bool:
    """Whether nobody but this machine can ask."""
    return host in ("127.0.0.1", "localhost", "::1")
