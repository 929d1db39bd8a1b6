"""The folder of one run: which steps are done, to run, stale, waiting or not yet known.

Knows identities and published folders; runs nothing.

    folder = RunFolder(workspace.runs("tiny"))
    folder.state(step)      # State(kind="stale", reasons=("dpo.beta 0.1 → 0.2",))
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import BadInput, Damaged
from posttrain.steps.fingerprint import ContentHashes, drift, fingerprint, without
from posttrain.steps.manifest import Manifest, check_sizes, read_manifest
from posttrain.steps.step import Choice, Step
from posttrain.tables import read_json

Kind = Literal["done", "to run", "stale", "unknown", "waiting"]


@dataclass(frozen=True)
class State:
    """Where a step stands, and why."""

    kind: Kind
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Identity:
    """A step's payload and its hash."""

    payload: dict[str, Any]
    fingerprint: str


@dataclass
class RunFolder:
    """Reads `runs/<plan>/`; an answer about a step is remembered until `forget`."""

    root: Path
    _identities: dict[str, Identity | State] = field(default_factory=dict)
    _manifests: dict[str, Manifest | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hashes = ContentHashes(self.root / ".hashes.json")

    def path(self, step: Step) -> Path:
        """Where a step's output is, or will be, published."""
        return self.root / step.address

    def partial(self, step: Step) -> Path:
        """Where a step works until it is whole."""
        return self.root / f"{step.address}.partial"

    def forget(self) -> None:
        """Look at the disk again from now on."""
        self._identities.clear()
        self._manifests.clear()

    def manifest(self, step: Step) -> Manifest | None:
        """The step's manifest, if it is published."""
        if step.address not in self._manifests:
            self._manifests[step.address] = read_manifest(self.path(step))
        return self._manifests[step.address]

    def identity(self, step: Step) -> Identity | State:
        """The step's payload and fingerprint, or the state that says why there is none yet.

        Raises:
            BadInput: a file that the step reads is missing.
        """
        if step.address not in self._identities:
            self._identities[step.address] = self._identify(step)
        return self._identities[step.address]

    def _identify(self, step: Step) -> Identity | State:
        inputs: dict[str, str] = {}
        for name, source in step.inputs.items():
            known = self.identity(source)
            if isinstance(known, State):
                return known
            inputs[name] = known.fingerprint
        for name, choice in step.choices.items():
            chosen = self.chosen(choice)
            if chosen is None:
                return State("unknown", (f"until round {choice.gate.round}",))
            inputs[name] = str(chosen["fingerprint"])
        files: dict[str, str] = {}
        for name, path in step.files.items():
            if not path.exists():
                if name in step.awaited:
                    return State("waiting", (f"for {path}",))
                raise BadInput(f"{step.address}: {path} is missing")
            files[name] = self.hashes.of(path)
        payload = {
            "function": step.function,
            "version": step.version,
            "settings": without(step.settings, step.circumstances),
            "inputs": inputs,
            "files": files,
        }
        return Identity(payload, fingerprint(payload))

    def chosen(self, choice: Choice) -> dict[str, Any] | None:
        """What a gate published, or None while the gate is not done (or stale)."""
        if self.state(choice.gate).kind != "done":
            return None
        return read_json(self.path(choice.gate) / choice.file)

    def state(self, step: Step) -> State:
        """Where a step stands.

        Raises:
            Damaged: it is published, but a file is missing or has another size.
        """
        identity = self.identity(step)
        manifest = self.manifest(step)
        if isinstance(identity, State):
            return identity
        if manifest is None:
            return State("to run")
        if manifest.fingerprint != identity.fingerprint:
            return State("stale", tuple(drift(manifest.payload, identity.payload)))
        check_sizes(self.path(step), manifest)
        return State("done")

    def input_paths(self, step: Step) -> dict[str, Path]:
        """Folders of a step's inputs and choices, files and folders it reads, by name.

        Raises:
            Damaged: an input is not published.
        """
        paths = {name: self.path(source) for name, source in step.inputs.items()}
        for name, choice in step.choices.items():
            chosen = self.chosen(choice)
            if chosen is None:
                raise Damaged(f"{step.address}: {choice.gate.address} has not chosen yet")
            paths[name] = self.root / str(chosen["step"])
        for name, path in paths.items():
            if not path.is_dir():
                raise Damaged(f"{step.address}: its input {name} ({path}) is not published")
        return {**paths, **step.files}

    def set_aside(self, steps: Iterable[Step]) -> list[Path]:
        """Move published steps out of the way, into `.replaced/`; nothing is deleted."""
        moved = []
        for step in steps:
            manifest = self.manifest(step)
            if manifest is None:
                continue
            base = self.root / ".replaced" / f"{step.address}-{manifest.fingerprint[:8]}"
            base.parent.mkdir(parents=True, exist_ok=True)
            place, copies = base, 1
            while place.exists():
                copies += 1
                place = base.with_name(f"{base.name}-{copies}")
            self.path(step).rename(place)
            moved.append(place)
        self.forget()
        return moved
