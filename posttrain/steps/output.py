"""What a step's function gets: what it reads, and the folder it writes with its books.

Knows folders and counts; a stage never opens a manifest of its own.

    def run(inputs: Inputs, settings: SftStep, out: Output) -> None:
        rows = load_rows(inputs["curate"] / "train.jsonl", Example)
        out.write("report", rows)
        out.metrics(loss=0.4)
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from posttrain.settings.resources import Resources
from posttrain.tables import Reject, write_json, write_row, write_rows
from posttrain.workspace import Workspace

DROPPED = "dropped.jsonl"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Inputs:
    """Folders and files a step reads, by name, and the circumstances it runs in."""

    paths: Mapping[str, Path]
    workspace: Workspace
    resources: Resources
    machine: Path
    """A file of this run that remembers what was decided once, such as the precision."""

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]

    def model(self, name: str) -> Path:
        """The model folder of an input, which is a step's folder or a checkpoint."""
        folder = self.paths[name]
        return folder / "model" if (folder / "model").is_dir() else folder

    def named(self, prefix: str) -> dict[str, Path]:
        """Inputs whose name starts with the prefix, in order of name."""
        return {k: v for k, v in sorted(self.paths.items()) if k.startswith(prefix)}


@dataclass(frozen=True)
class Part:
    """Rows in, out and dropped in one part of a step."""

    name: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    """Reason → rows."""
    changed: dict[str, int] = field(default_factory=dict)
    """Rule → rows it modified."""


@dataclass
class Output:
    """A step's folder while it is being made, and the books that go into its manifest."""

    path: Path
    progress: Progress
    _rows: dict[str, int] = field(default_factory=dict)
    _metrics: dict[str, Any] = field(default_factory=dict)
    _funnel: list[Part] = field(default_factory=list)
    _dropped: IO[str] | None = None
    _num_dropped: int = 0
    _reasons: Counter[str] = field(default_factory=Counter)
    """Of rows that were dropped since the last part was closed."""

    def write(self, name: str, rows: Iterable[BaseModel | Mapping[str, Any]]) -> None:
        """Publish a table as `NAME.jsonl`."""
        self._rows[name] = write_rows(self.path / f"{name}.jsonl", rows)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Publish a document as `NAME.json`."""
        write_json(self.path / f"{name}.json", value)

    def metrics(self, **values: Any) -> None:
        """Numbers (or nested mappings of numbers) for the manifest and the report."""
        self._metrics.update(values)

    def drop(self, row_id: str, reason: str, **details: Any) -> None:
        """Record a dropped row in the side table `dropped.jsonl`."""
        if self._dropped is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._dropped = (self.path / DROPPED).open("w", encoding="utf-8")
        write_row(self._dropped, {"id": row_id, "reason": reason, **details})
        self._num_dropped += 1
        self._reasons[reason.partition(":")[0]] += 1

    def reject(self, rejects: Iterable[Reject]) -> None:
        """Record malformed input rows with file, line and reason."""
        for one in rejects:
            self.drop(
                f"{one.file}:{one.line}",
                f"malformed: {one.reason}",
                file=one.file,
                line=one.line,
                excerpt=one.excerpt,
            )

    def part(
        self, name: str, rows_in: int, rows_out: int, changed: Mapping[str, int] | None = None
    ) -> None:
        """Close one part of the funnel: what was dropped since the last part belongs to it."""
        self._funnel.append(Part(name, rows_in, rows_out, dict(self._reasons), dict(changed or {})))
        self._reasons.clear()

    def close(self) -> dict[str, Any]:
        """Write the side table; the books for the manifest."""
        if self._dropped is not None:
            self._dropped.flush()
            os.fsync(self._dropped.fileno())
            self._dropped.close()
            self._rows["dropped"] = self._num_dropped
        return {
            "rows": self._rows,
            "funnel": [vars(part) for part in self._funnel],
            "metrics": self._metrics,
        }
