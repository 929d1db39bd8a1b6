"""Brings steps up to date, each in its own process, as many at once as the machine has room for.

Knows which step waits for which, jobs and disk space. Knows no stage, and no order beyond what
steps read: those that do not need each other run side by side.

    run_steps(run, run.round_steps(1), watch)
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from posttrain.controller import Run
from posttrain.errors import BadInput, Damaged, PosttrainError, StepFailed, WaitingForPeople
from posttrain.settings.resources import Resources
from posttrain.steps.fingerprint import fsync_folder
from posttrain.steps.job import Job
from posttrain.steps.manifest import (
    IDENTITY,
    MANIFEST,
    check_hashes,
    command_line,
    finish,
    read_manifest,
)
from posttrain.steps.process import WorkerPool, has_accelerator
from posttrain.steps.run_folder import Identity, State
from posttrain.steps.step import Step
from posttrain.tables import read_json, write_json

_MIB = 1 << 20
_GIB = 1 << 30
# A training step holds its result, and two checkpoints of weights and two Adam moments in float32.
_TRAINING_FACTOR = 14
_MOST_AT_ONCE = 4
_AVERAGES = ("posttrain.stages.average", "posttrain.stages.soup")


class Watch(Protocol):
    """Is told what happens; the command line draws it."""

    def begin(self, step: Step, resumed: bool) -> None:
        """A step starts, or goes on where it was killed."""

    def progress(self, step: Step, done: int, total: int) -> None:
        """A step has done a part of its work."""

    def end(self, step: Step, seconds: float) -> None:
        """A step was published."""

    def skip(self, step: Step) -> None:
        """A step was done already."""


def run_steps(run: Run, steps: Sequence[Step], watch: Watch, redo_stale: bool = False) -> None:
    """Bring every step up to date. Running it again continues where it stopped.

    A step starts when what it reads among `steps` is done. When one fails, those beside it are
    ended with it; what they had finished is kept.

    Raises:
        WaitingForPeople: answers are missing; everything that needs none is done.
        BadInput: a step is stale and `redo_stale` was not given; what ran beside it is done.
        StepFailed: a step ended without publishing.
        Preempted: SIGTERM came; trainings have written a checkpoint.
    """
    resources = run.plan.resources
    shared = resources.worker == "shared" or (resources.worker == "auto" and not has_accelerator())
    room = _room(resources)
    with (
        ThreadPoolExecutor(room, "step") as threads,
        WorkerPool(shared, resources.threads, resources.grace_seconds) as pool,
    ):
        line = _Line(run, watch, redo_stale, list(steps))
        line.serve(room, lambda step, job: threads.submit(_execute, pool, job, step, watch))
    run.folder.hashes.save()


def _execute(pool: WorkerPool, job: Job, step: Step, watch: Watch) -> None:
    pool.run(job, partial(watch.progress, step))


def _room(resources: Resources) -> int:
    """How many steps run side by side."""
    if resources.parallel != "auto":
        return resources.parallel
    if has_accelerator():
        return 1
    return max(1, min(_MOST_AT_ONCE, len(os.sched_getaffinity(0)) // resources.threads))


@dataclass
class _Line:
    """The steps that still have to be done, and those that are running."""

    run: Run
    watch: Watch
    redo_stale: bool
    left: list[Step]
    running: dict["Future[None]", Step] = field(default_factory=dict)

    def serve(self, room: int, start: Callable[[Step, Job], "Future[None]"]) -> None:
        """Start what can start and wait for it, until nothing is left."""
        held: PosttrainError | None = None
        for step in list(self.left):
            if self.run.folder.state(step).kind == "done":
                self.left.remove(step)
                self.watch.skip(step)
        while self.left or self.running:
            for step in self._free(room):
                try:
                    job = self._prepared(step)
                except WaitingForPeople as error:
                    held = held or error
                    self._hold(step)
                    continue
                except PosttrainError as error:
                    # What runs beside is let end; nothing else is started.
                    held = error
                    self.left.clear()
                    break
                self.left.remove(step)
                if job is not None:
                    self.running[start(step, job)] = step
            if self.running:
                self._finish()
        if held is not None:
            raise held

    def _free(self, room: int) -> list[Step]:
        """Steps that wait for nothing, at most as many as there is room for."""
        unfinished = {s.address for s in (*self.left, *self.running.values())}
        free = [step for step in self.left if not _reads(step) & unfinished]
        return free[: room - len(self.running)]

    def _hold(self, step: Step) -> None:
        """Give up a step that waits for people, and all that read it."""
        gone = {step.address}
        for one in self.left:
            if _reads(one) & gone:
                gone.add(one.address)
        self.left = [one for one in self.left if one.address not in gone]

    def _prepared(self, step: Step) -> Job | None:
        """The job of a step that has to run; None if it is done."""
        run, watch = self.run, self.watch
        state = run.folder.state(step)
        if state.kind == "stale" and self.redo_stale:
            run.folder.set_aside([step])
            state = run.folder.state(step)
        identity = _ready(run, step, state)
        if _finished_before(run, step, identity):
            watch.skip(step)
            return None
        _check_space(run, step)
        watch.begin(step, _prepare_partial(run, step, identity))
        return _job(run, step, identity)

    def _finish(self) -> None:
        """Wait until a step ends, and see that it has published.

        Raises:
            PosttrainError: what the step raised.
        """
        ended, _ = wait(self.running, return_when=FIRST_COMPLETED)
        self.run.folder.forget()
        for one in ended:
            step = self.running.pop(one)
            one.result()
            manifest = self.run.folder.manifest(step)
            if manifest is None:
                raise StepFailed(f"{step.address}: its process said done, but nothing is published")
            self.watch.end(step, manifest.seconds)


def _reads(step: Step) -> set[str]:
    """Addresses of the steps whose results a step needs, a gate's choice included."""
    gates = (choice.gate for choice in step.choices.values())
    return {source.address for source in (*step.inputs.values(), *gates)}


def _ready(run: Run, step: Step, state: State) -> Identity:
    """The identity of a step that can run now."""
    if state.kind == "waiting":
        raise WaitingForPeople(
            f"{step.address} waits {state.reasons[0]}: one judgment a line for the tasks in "
            f"{run.folder.path(step.inputs['tasks']) / 'tasks.jsonl'}, or judge them on a page: "
            f"posttrain annotate serve {step.round - 1}"
        )
    if state.kind == "stale":
        listed = "; ".join(state.reasons)
        raise BadInput(
            f"{step.address} was made with other settings: {listed}. Restore them, or run with "
            "--redo-stale to set the old result aside and make it again"
        )
    identity = run.folder.identity(step)
    if isinstance(identity, State):
        raise BadInput(
            f"{step.address} is {identity.kind} {' '.join(identity.reasons)}: something that "
            f"earlier rounds read has changed; see posttrain plan {max(1, step.round - 1)}"
        )
    return identity


def _finished_before(run: Run, step: Step, identity: Identity) -> bool:
    """Whether the step was killed when all but its last rename was done; then that is done now."""
    folder = run.folder.partial(step)
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder)
    if manifest is None or manifest.fingerprint != identity.fingerprint:
        return False
    if check_hashes(folder, manifest):
        return False
    finish(folder, run.folder.path(step))
    run.folder.forget()
    return True


def _prepare_partial(run: Run, step: Step, identity: Identity) -> bool:
    """An own folder to work in; whether it holds work of the same step to go on from."""
    folder = run.folder.partial(step)
    mark = folder / IDENTITY
    if folder.is_dir():
        same = mark.is_file() and read_json(mark)["fingerprint"] == identity.fingerprint
        if same:
            return True
        # Work for other settings is of no use, and mixing the two would be silent.
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(mark, {"fingerprint": identity.fingerprint})
    fsync_folder(folder.parent)
    return False


def _job(run: Run, step: Step, identity: Identity) -> Job:
    paths = run.folder.input_paths(step)
    _check_weights(step, paths)
    addresses = {
        name: str(path.relative_to(run.folder.root))
        for name, path in paths.items()
        if path.is_relative_to(run.folder.root)
    }
    return Job(
        address=step.address,
        function=step.function,
        settings=dict(step.settings),
        payload=identity.payload,
        fingerprint=identity.fingerprint,
        inputs=addresses,
        paths={name: str(path) for name, path in paths.items()},
        partial=str(run.folder.partial(step)),
        final=str(run.folder.path(step)),
        workspace=str(run.workspace.root),
        resources=run.plan.resources.model_dump(mode="json"),
        machine=str(run.folder.root / "machine.json"),
        trains=step.weights and step.function.partition(":")[0] not in _AVERAGES,
        log=str(run.folder.root / "logs" / f"{step.address.replace('/', '-')}.log"),
        argv=command_line(),
    )


def _check_weights(step: Step, paths: dict[str, Path]) -> None:
    for name, path in paths.items():
        if (path / "collected.json").is_file() and step.name != "gate":
            raise Damaged(
                f"{step.address}: the weights of its input {name} ({path}) were removed by "
                "posttrain gc; move that folder away and run its round again to make them"
            )


def _check_space(run: Run, step: Step) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        StepFailed: naming what is needed and what is free.
    """
    free = shutil.disk_usage(run.folder.root).free
    base = run.workspace.find(run.plan.base)
    weights = sum(p.stat().st_size for p in base.glob("*.safetensors"))
    needed = run.plan.resources.min_free_gib * _GIB + (_TRAINING_FACTOR * weights) * step.weights
    if free < needed:
        raise StepFailed(
            f"{step.address}: {free / _MIB:,.0f} MiB are free, about {needed / _MIB:,.0f} MiB are "
            "needed; free some (posttrain gc) or lower resources.min_free_gib"
        )
