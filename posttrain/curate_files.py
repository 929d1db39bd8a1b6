"""Curates a file of dialogs outside of any run, by a pipeline's steps.

Knows the rows that users bring, and keeps their columns as they are. Which steps there are and what
they do, `posttrain.curation` knows.

    curate_file(CurateFileSettings(), Path("rows.jsonl"), Path("out"))["kept"]
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Printed

from posttrain.curation.contract import Curated, CurationTools, Row, Scored
from posttrain.curation.curate import curate
from posttrain.embedding import CACHE, Embedded, Embedder, embedder_folder
from posttrain.errors import BadInput
from posttrain.out_folder import SUMMARY, OutFolder
from posttrain.progress import Told, progress
from posttrain.rows import Prompt
from posttrain.settings.base import parse, with_overrides
from posttrain.settings.data_options import CurateFileSettings
from posttrain.settings.pipeline import Pipeline
from posttrain.tables import (
    Reject,
    check_share,
    raw_rows,
    read_table,
    write_json,
    write_rows,
)
from posttrain.user_rows import PromptRow, ScoredDialog, parsed_lines
from posttrain.workspace import (
    Workspace,
    library,
    load_filters,
    load_functions,
    nearest_workspace,
    read_yaml,
)

TOLD_EVERY = 1000
"""Rows between two calls for progress."""


def curate_file(settings: CurateFileSettings, rows: Path, out: Path) -> dict[str, Any]:
    """Write `kept.jsonl`, `dropped.jsonl` and `summary.json` into a folder; the summary.

    A kept row has the columns it came with; one that was changed has its new `messages` and
    `edits`, one that is to be repeated has `repeat`.

    Raises:
        BadInput: no such file, too many malformed rows, a wrong pipeline, or a folder that holds
            something else.
        StepFailed: all rows are dropped, or semantic dedup loses too much of a capability.
    """
    with OutFolder(out, ("kept.jsonl", "dropped.jsonl"), (CACHE,)) as target:
        workspace = nearest_workspace() or Workspace(library())
        pipeline = _pipeline(settings, workspace)
        heldout = _heldout(settings)
        source = _Source(rows, target.partial / "rows.jsonl")
        tools = CurationTools(
            rules=load_functions(workspace.find("data_quality/rules.py")),
            filters=load_filters(
                {n: workspace.find(f"data_quality/{file}") for n, file in pipeline.filters.items()}
            ),
            heldout=heldout,
            shares=settings.mix,
            embed=_embedder(pipeline, workspace, target.folder / CACHE),
            topics=workspace.find("data_quality/topics.yaml"),
            seed=settings.seed,
            work=target.partial,
        )
        with progress("reading", "rows") as told:
            found = curate(source.read(told, settings.reject_share), pipeline, tools)
        summary = {
            "rows": source.total,
            "kept": len(found.kept),
            "malformed": len(source.rejects),
            "heldout": len(heldout),
            "steps": [
                {**vars(count), "dropped": dict(count.dropped), "modified": dict(count.modified)}
                for count in found.counts
            ],
            "mix": {name: share._asdict() for name, share in found.mix.items()},
        }
        _write(found, source, target.partial)
        write_json(target.partial / SUMMARY, summary)
        return summary


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what `curate_file` did, as a table."""
    table = Printed()
    for place, column in enumerate(("step", "rows in", "dropped", "changed", "why")):
        table.add_column(column, justify="left" if place in (0, 4) else "right")
    for step in summary["steps"]:
        why = ", ".join(f"{reason} {count}" for reason, count in step["dropped"].items())
        gone, changed = step["rows_in"] - step["rows_out"], sum(step["modified"].values())
        table.add_row(step["step"], str(step["rows_in"]), str(gone), str(changed), why)
    console = Console()
    console.print(table)
    lines = [f"{summary['kept']} of {summary['rows']} rows kept, {summary['malformed']} malformed"]
    if not summary["heldout"]:
        lines.append("no evaluation prompts were given (--heldout): nothing was decontaminated")
    for line in lines:
        console.print(line, highlight=False)


class _Source:
    """The rows of a file: as they are curated, and as they stood there."""

    def __init__(self, path: Path, copy: Path) -> None:
        if path.suffix == ".parquet":
            write_rows(copy, (row for _, row in raw_rows(path)))  # type: ignore[misc]
        self._path = copy if path.suffix == ".parquet" else path
        self._offsets: list[int] = []
        self.rejects: list[Reject] = []

    @property
    def total(self) -> int:
        """Rows of the file, malformed ones too."""
        return len(self._offsets) + len(self.rejects)

    def read(self, told: Told, reject_share: float) -> Iterator[Scored]:
        """Each row that can be read; the n-th is the curated row of number n.

        Raises:
            BadInput: no such file, one without rows, or too many malformed ones.
        """
        for offset, _, row in parsed_lines(self._path, ScoredDialog):
            if isinstance(row, Reject):
                self.rejects.append(row)
                continue
            self._offsets.append(offset)
            if not self.total % TOLD_EVERY:
                told(self.total, None)
            prompt = None
            if row.level is not None:
                prompt = Prompt(prompt=row.messages[:1], capability=row.capability, level=row.level)
            yield Scored(row, row.score, row.grade, prompt, row.human)
        if not self.total:
            raise BadInput(f"{self._path}: expected rows, it has none")
        check_share(self.rejects, self.total, reject_share, "--reject-share")

    def lines(self, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
        """Each row with its line."""
        with self._path.open("rb") as file:
            for row in rows:
                file.seek(self._offsets[row.number])
                yield row, file.readline()


def _pipeline(settings: CurateFileSettings, workspace: Workspace) -> Pipeline:
    path = settings.pipeline or workspace.find("data_quality/pipeline.yaml")
    data = read_yaml(path)
    if settings.pipeline is None:
        # A round's rows all have scores; rows that nobody scored are what most files hold.
        data["quality"] = {**(data.get("quality") or {}), "unscored": "keep"}
    return parse(Pipeline, with_overrides(data, settings.overrides), str(path))


def _heldout(settings: CurateFileSettings) -> list[Prompt]:
    found: list[Prompt] = []
    for path in settings.heldout:
        table = read_table(path, PromptRow)
        table.check_share(0.0, "fix them")
        found += table.rows
    return found


def _embedder(
    pipeline: Pipeline, workspace: Workspace, cache: Path
) -> Callable[[Sequence[str]], Embedded] | None:
    if not {"semantic_dedup", "topics"} & set(pipeline.order):
        return None
    return Embedder(embedder_folder(pipeline.dedup.embedder, workspace.root), cache).embed


def _write(found: Curated, source: _Source, folder: Path) -> None:
    with (folder / "kept.jsonl").open("wb") as file:
        for row, line in source.lines(sorted(found.kept.rows, key=lambda row: row.number)):
            file.write(_as_it_came(row, line).rstrip(b"\n") + b"\n")
        file.flush()
        os.fsync(file.fileno())

    def dropped() -> Iterator[dict[str, Any]]:
        for reject in source.rejects:
            yield {"step": "read", **vars(reject)}
        for one in found.dropped:
            yield {"id": one.id, "step": one.step, "reason": one.reason, **one.extra}

    write_rows(folder / "dropped.jsonl", dropped())


def _as_it_came(row: Row, line: bytes) -> bytes:
    """A kept row's line with what curation changed."""
    if not row.edits and row.repeat == 1:
        return line
    data = json.loads(line)
    if row.edits:
        data["messages"] = [turn.to_json() for turn in row.example.messages]
        data["edits"] = [*(data.get("edits") or ()), *row.edits]
    if row.repeat > 1:
        data["repeat"] = row.repeat
    return json.dumps(data, ensure_ascii=False).encode()
