"""Runs the steps of a round in order, each in its own process, and stops where it must.

Knows states, jobs and disk space. Knows no stage: what a round consists of is
`posttrain.planning`'s affair.

    run = Run.open(workspace, "tiny", overrides=[])
    run_steps(run, run.round_steps(1), watch)
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from posttrain.errors import BadInput, Damaged, StepFailed, WaitingForPeople
from posttrain.planning import plan_steps
from posttrain.settings.plan import Plan
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
from posttrain.steps.run_folder import Identity, RunFolder, State
from posttrain.steps.step import Step
from posttrain.tables import read_json, write_json
from posttrain.workspace import Workspace, load_plan

_MIB = 1 << 20
_GIB = 1 << 30
# A training step holds its result, and two checkpoints of weights and two Adam moments in float32.
_TRAINING_FACTOR = 14


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


@dataclass(frozen=True)
class Run:
    """A plan in a workspace, with its steps and its folder."""

    workspace: Workspace
    name: str
    plan: Plan
    steps: dict[str, Step]
    folder: RunFolder

    @classmethod
    def open(cls, workspace: Workspace, name: str, overrides: Iterable[str] = ()) -> Self:
        """Resolve a plan; runs nothing.

        Raises:
            BadInput: anything the plan names is wrong or missing.
        """
        plan = load_plan(workspace, name, overrides)
        steps = plan_steps(workspace, name, plan)
        return cls(workspace, name, plan, steps, RunFolder(workspace.runs(name)))

    def round_steps(self, number: int) -> list[Step]:
        """The steps of a round, in order; round 1 includes the bootstrap (round 0).

        Raises:
            BadInput: the plan has no such round.
        """
        if not 1 <= number <= len(self.plan.rounds):
            raise BadInput(f"round {number}: rounds/{self.name}.yaml has {len(self.plan.rounds)}")
        wanted = (0, 1) if number == 1 else (number,)
        return [step for step in self.steps.values() if step.round in wanted]

    def states(self, steps: Iterable[Step]) -> list[tuple[Step, State]]:
        """Where each step stands."""
        found = [(step, self.folder.state(step)) for step in steps]
        self.folder.hashes.save()
        return found

    def published(self) -> list[Step]:
        """Every step of the plan that is published and not stale."""
        return [step for step in self.steps.values() if self.folder.state(step).kind == "done"]

    def is_done(self, number: int) -> bool:
        """Whether every step of a round is published and current."""
        return all(self.folder.state(step).kind == "done" for step in self.round_steps(number))


@dataclass(frozen=True)
class Window:
    """Which part of a round to run."""

    first: str | None = None
    """Start at this step; those before it must be done."""
    last: str | None = None
    """Stop after this step."""
    redo_stale: bool = False
    """Set stale steps aside and run them again."""


def slice_of(run: Run, number: int, window: Window) -> list[Step]:
    """The steps of a round inside a window.

    Raises:
        BadInput: an unknown step, or an empty window.
    """
    steps = run.round_steps(number)
    own = {step.name for step in steps if step.round}
    # Round 1 brings the bootstrap along, some of whose steps have the same names.
    names = [s.name if s.round or s.name not in own else s.address for s in steps]
    first = _index(names, window.first, "--from", 0)
    last = _index(names, window.last, "--until", len(steps) - 1)
    if first > last:
        raise BadInput(f"--from {window.first} comes after --until {window.last}")
    return steps[first : last + 1]


def window_of(run: Run, number: int, window: Window) -> list[Step]:
    """The steps of a round inside a window, which can run now.

    Raises:
        BadInput: an unknown step, an empty window, a step before the window that is not done, or
            an unfinished round before this one.
    """
    wanted = slice_of(run, number, window)
    if number > 1 and not run.is_done(number - 1):
        missing = next(s for s in run.round_steps(number - 1) if run.folder.state(s).kind != "done")
        raise BadInput(
            f"round {number} needs round {number - 1}, whose step {missing.name} is "
            f"{run.folder.state(missing).kind}; run posttrain round {number - 1} first"
        )
    for step in run.round_steps(number):
        if step == wanted[0]:
            break
        state = run.folder.state(step)
        if state.kind != "done":
            raise BadInput(f"--from {window.first}: {step.address} before it is {state.kind}")
    return wanted


def _index(names: Sequence[str], name: str | None, option: str, default: int) -> int:
    if name is None:
        return default
    if name not in names:
        raise BadInput(f"{option} {name}: no such step; this round has {', '.join(names)}")
    return names.index(name)


def run_steps(run: Run, steps: Sequence[Step], watch: Watch, redo_stale: bool = False) -> None:
    """Bring every step up to date, in order. Running it again continues where it stopped.

    Raises:
        WaitingForPeople: answers are missing; everything before them is done.
        BadInput: a step is stale and `redo_stale` was not given.
        StepFailed: a step ended without publishing.
    """
    resources = run.plan.resources
    shared = resources.worker == "shared" or (resources.worker == "auto" and not has_accelerator())
    with WorkerPool(shared, resources.threads) as pool:
        for step in steps:
            state = run.folder.state(step)
            if state.kind == "stale" and redo_stale:
                run.folder.set_aside([step])
                state = run.folder.state(step)
            if state.kind == "done":
                watch.skip(step)
                continue
            identity = _ready(run, step, state)
            if _finished_before(run, step, identity):
                watch.skip(step)
                continue
            _check_space(run, step)
            resumed = _prepare_partial(run, step, identity)
            watch.begin(step, resumed)
            job = _job(run, step, identity)
            pool.run(job, partial(watch.progress, step))
            run.folder.forget()
            manifest = run.folder.manifest(step)
            if manifest is None:
                raise StepFailed(f"{step.address}: its process said done, but nothing is published")
            watch.end(step, manifest.seconds)
    run.folder.hashes.save()


def _ready(run: Run, step: Step, state: State) -> Identity:
    """The identity of a step that can run now."""
    if state.kind == "waiting":
        raise WaitingForPeople(
            f"{step.address} waits {state.reasons[0]}: one judgment a line for the tasks in "
            f"{run.folder.path(step.inputs['tasks']) / 'tasks.jsonl'}"
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
        trains=step.weights and step.function.partition(":")[0] != "posttrain.stages.average",
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
