"""A run: a plan in a workspace, its steps, where each stands, and the part of it to bring up.

Knows states and windows. Knows no stage: what a round consists of is `posttrain.planning`'s affair;
how steps run is `posttrain.scheduler`'s.

    run = Run.open(workspace, "tiny", overrides=[])
    window_of(run, 1, Window(last="sample"))
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from posttrain.errors import BadInput
from posttrain.planning import plan_steps
from posttrain.settings.plan import Plan
from posttrain.steps.run_folder import RunFolder, State
from posttrain.steps.step import Step
from posttrain.workspace import Workspace, load_plan

_MIB = 1 << 20
_GIB = 1 << 30
# A training step holds its result, and two checkpoints of weights and two Adam moments in float32.
_TRAINING_FACTOR = 14


@dataclass(frozen=True)
class Run:
    """A plan in a workspace, with its steps and its folder."""

    workspace: Workspace
    name: str
    """Of its folder in `runs/`; the plan's name unless another was given."""
    plan_name: str
    plan: Plan
    steps: dict[str, Step]
    folder: RunFolder

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        plan_name: str,
        overrides: Iterable[str] = (),
        name: str | None = None,
    ) -> Self:
        """Resolve a plan; runs nothing.

        Raises:
            BadInput: anything the plan names is wrong or missing.
        """
        name = name or plan_name
        plan = load_plan(workspace, plan_name, overrides)
        steps = plan_steps(workspace, name, plan)
        return cls(workspace, name, plan_name, plan, steps, RunFolder(workspace.runs(name)))

    def round_steps(self, number: int) -> list[Step]:
        """The steps of a round, in order; round 1 includes the bootstrap (round 0).

        Raises:
            BadInput: the plan has no such round.
        """
        if not 1 <= number <= len(self.plan.rounds):
            raise BadInput(
                f"round {number}: rounds/{self.plan_name}.yaml has {len(self.plan.rounds)}"
            )
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
