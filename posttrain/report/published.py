"""What a run has published, as the sections of the report read it.

Knows addresses and manifests; draws nothing.

    found = Published.of_run(run)
    found.of("measure")[3].metrics["rates"]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from posttrain.controller import Run
from posttrain.report.figures import BASE
from posttrain.steps.manifest import Manifest


@dataclass(frozen=True)
class Published:
    """What a run has published: manifests by address, and where their files lie."""

    root: Path
    last: int
    """Number of the plan's last round."""
    manifests: dict[str, Manifest]

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """Everything that is published and not stale."""
        manifests = {step.address: run.folder.manifest(step) for step in run.published()}
        known = {address: one for address, one in manifests.items() if one is not None}
        return cls(run.folder.root, len(run.plan.rounds), known)

    def ticks(self) -> list[int]:
        """The base, the bootstrap and every round of the plan."""
        return list(range(BASE, self.last + 1))

    def of(self, name: str) -> dict[int, Manifest]:
        """Round → manifest of the step of that name."""
        found = {}
        for number in range(self.last + 1):
            manifest = self.manifests.get(f"round-{number}/{name}")
            if manifest is not None:
                found[number] = manifest
        return found

    def measures(self) -> dict[int, Manifest]:
        """Round → manifest of its measure, the base's under `BASE`."""
        found = self.of("measure")
        base = self.manifests.get("round-0/measure-base")
        return found if base is None else {BASE: base, **found}

    def harness(self) -> dict[int, dict[str, Any]]:
        """Round → what lm-evaluation-harness found, shaped like the measures of recipes' hooks."""
        found = self.of("harness")
        base = self.manifests.get("round-0/harness-base")
        runs = found if base is None else {BASE: base, **found}
        return {
            number: {"test": {"sampled": {"measures": _by_task(one.metrics["harness"])}}}
            for number, one in runs.items()
        }

    def folder(self, manifest: Manifest) -> Path:
        """Where a step's files are."""
        return self.root / manifest.address


def _by_task(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Capability → `task metric` → value, without standard errors."""
    return {
        capability: {
            f"{task} {metric}": value
            for task, metrics in tasks.items()
            for metric, value in metrics.items()
            if " stderr" not in metric
        }
        for capability, tasks in results.items()
    }
