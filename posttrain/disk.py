"""Which published weights a plan lets go, and their removal; manifests and lineage always stay.

Knows `keep`, gates and unfinished steps; a step remembers which files it lost.

    collect(run, collectable(run))
"""

from pathlib import Path
from typing import Any

from posttrain.controller import Run
from posttrain.steps.manifest import COLLECTED, collected_files
from posttrain.steps.step import Choice, Step
from posttrain.tables import read_json, write_json


def collectable(run: Run) -> dict[Path, int]:
    """Weight files that may go, with their sizes in bytes.

    What an unfinished step still reads, and the policy that a gate chose, always stay.
    """
    kept = _kept_addresses(run)
    found: dict[Path, int] = {}
    for step in run.published():
        if not step.weights or step.address in kept:
            continue
        for path in sorted((run.folder.path(step) / "model").glob("*.safetensors")):
            found[path] = path.stat().st_size
    replaced = run.folder.root / ".replaced"
    if replaced.is_dir():
        for path in sorted(replaced.rglob("*.safetensors")):
            found[path] = path.stat().st_size
    return found


def collect(run: Run, files: dict[Path, int]) -> None:
    """Remove files; each step remembers which of its files are gone."""
    by_step: dict[Path, set[str]] = {}
    for step in run.published():
        folder = run.folder.path(step)
        mine = {p.relative_to(folder).as_posix() for p in files if p.is_relative_to(folder)}
        if mine:
            by_step[folder] = mine
    for folder, names in by_step.items():
        # Written first: a file named here and still present is harmless, the reverse is damage.
        everything = sorted(names | collected_files(folder))
        write_json(folder / COLLECTED, {"files": everything})
        for name in names:
            (folder / name).unlink()
    for path in files:
        # Those of steps that were set aside; their manifests stay as well.
        path.unlink(missing_ok=True)


def _kept_addresses(run: Run) -> set[str]:
    keep = run.plan.keep
    published = {step.address for step in run.published()}
    kept: set[str] = set()
    policy = "dpo" if run.plan.dpo.enabled else "sft"
    counts = {"rm": keep.reward, "sft": keep.sft} | {policy: keep.policy}
    for name, count in counts.items():
        mine = [s for s in run.steps.values() if s.name == name and s.address in published]
        kept |= {step.address for step in sorted(mine, key=lambda s: s.round)[-count:]}
    for step in run.steps.values():
        if step.address not in published:
            kept |= {source.address for source in step.inputs.values()}
            known = [one for one in step.choices.values() if one.gate.address in published]
            kept |= {str(_chosen(run, one)["step"]) for one in known}
    gates_done = [s for s in run.steps.values() if s.name == "gate" and s.address in published]
    if gates_done:
        chosen = _chosen(run, Choice(gates_done[-1]))
        kept |= {str(chosen["step"]), str(chosen["best"]["step"])}
    kept |= {s.address for s in run.steps.values() if s.name.startswith("expert-")}
    if keep.members:
        kept |= {s.address for s in run.steps.values() if _is_member(s)}
    return kept


def _chosen(run: Run, choice: Choice) -> dict[str, Any]:
    return read_json(run.folder.path(choice.gate) / choice.file)


def _is_member(step: Step) -> bool:
    return step.weights and "-" in step.name
