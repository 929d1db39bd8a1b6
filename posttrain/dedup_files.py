"""Deduplicates a file of rows outside of any run: equal texts, shared wording, near vectors.

Knows the rows that users bring, and keeps them as they are: a row that stays is written as its line
was. Holds vectors and a few numbers a row in memory, and reads a text again where it needs it.
Suffixes: N rows of the file, B bands.

    dedup_file(DedupFileSettings(), Path("rows.jsonl"), Path("out"))["kept"]
"""

import functools
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator
from rich.console import Console
from rich.table import Table as Printed

from posttrain.dedup import Removal, semantic_dedup
from posttrain.dedup.contract import Vectors, check_vectors
from posttrain.dedup.equal import messages_hash, plain_text
from posttrain.dedup.minhash import Hashes, band_keys, near_copies, shingles
from posttrain.embedding import CACHE, Embedder, dialog_text, embedder_folder
from posttrain.errors import BadInput, StepFailed
from posttrain.progress import progress
from posttrain.rows import Messages, content_id
from posttrain.settings.dedup_options import DedupFileSettings
from posttrain.tables import (
    Reject,
    check_share,
    excerpt,
    parse_row,
    raw_rows,
    write_json,
    write_rows,
)

NGRAM = 5
"""Words of a shingle."""
BATCH = 1024
TEXTS_AT_ONCE = 8192
"""Texts that are in memory together while they are embedded."""
SUMMARY = "summary.json"
LABELS = ("source", "capability", "topic")
"""Columns by whose values losses are told."""
STEPS = ("exact_duplicates", "minhash", "semantic_dedup")
MEASURES = {"minhash": "jaccard", "semantic_dedup": "cosine"}
REASONS = dict(zip(STEPS, ("equal text", "shared wording", "near duplicate"), strict=True))


class TextRow(BaseModel):
    """A row to compare: a dialog, or a text. Other columns are not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = ""
    messages: Messages = ()
    text: str = ""
    quality: float | None = None
    difficulty: float | None = None
    score: float | None = None
    source: Any = None
    capability: Any = None
    topic: Any = None

    @model_validator(mode="before")
    @classmethod
    def _text_id(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("id"), int):
            return {**data, "id": str(data["id"])}
        return data

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if not self.whole_text.strip():
            raise ValueError("expected messages or a text, and one that is not empty")
        return self

    @property
    def hash(self) -> bytes:
        """The same of equal texts."""
        whole = messages_hash(self.messages) if self.messages else content_id(plain_text(self.text))
        return bytes.fromhex(whole)

    @property
    def whole_text(self) -> str:
        """What is compared: every turn but system prompts, or the text."""
        return dialog_text(self.messages) if self.messages else self.text


class _Rank(NamedTuple):
    """Sort key, best first; rows without signals stay in the file's order."""

    product: float
    score: float
    difficulty: float
    tie: str

    @classmethod
    def of(cls, row: TextRow, own_id: str) -> Self | None:
        signals = (row.quality, row.difficulty, row.score)
        if all(signal is None for signal in signals):
            return None
        quality, difficulty = (1.0 if s is None else s for s in signals[:2])
        score = float("-inf") if row.score is None else row.score
        return cls(-quality * difficulty, -score, -difficulty, content_id(own_id))


@dataclass
class _Rows:
    """What is known of each row; a row is named by its place in the file, rejects counted."""

    path: Path
    """Lines of JSON, in the file's order."""
    ids: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    ranks: list[_Rank | None] = field(default_factory=list)
    labels: list[tuple[str | None, ...]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    good: list[int] = field(default_factory=list)
    """Rows that are no rejects."""
    keys: list[Hashes] = field(default_factory=list)
    """Sketches of batches of good rows."""

    def order(self) -> list[int]:
        """Good rows, best first."""
        last = _Rank(float("inf"), float("inf"), float("inf"), "")
        if all(rank is None for rank in self.ranks):
            return self.good
        return sorted(self.good, key=lambda row: (self.ranks[row] or last, row))

    def line(self, row: int) -> bytes:
        """A row as it stands in the file."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[row])
            return file.readline()

    def text(self, row: int) -> str:
        """What of a row is compared."""
        return TextRow.model_validate_json(self.line(row)).whole_text


def dedup_file(settings: DedupFileSettings, rows: Path, out: Path) -> dict[str, Any]:
    """Write `kept.jsonl`, `dropped.jsonl` and `summary.json` into a folder; the summary.

    Rows that have `quality`, `difficulty` or `score` are compared best first, by (quality x
    difficulty, score, difficulty, hash of the id); else the first in the file stays.

    Raises:
        BadInput: no such file, too many malformed rows, vectors that do not fit, no embedder, or a
            folder that holds something else.
        StepFailed: semantic duplicates take more than `max_loss` of a source, capability or topic.
    """
    _check_folder(out)
    vectors = None if settings.vectors is None else _vectors(settings.vectors)
    partial = out / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        found = _read(rows, partial / "rows.jsonl", settings)
    if vectors is not None and len(vectors) != len(found.ids):
        raise BadInput(
            f"{settings.vectors}: {len(vectors)} vectors for the {len(found.ids)} rows of {rows}; "
            "expected one for each row, in their order"
        )
    removals: dict[str, list[Removal]] = {}
    order = found.order()
    with _timed(seconds, STEPS[0]):
        removals[STEPS[0]] = _equal(found.hashes, order)
    order = _left(order, removals[STEPS[0]])
    if settings.jaccard:
        with _timed(seconds, STEPS[1]):
            removals[STEPS[1]] = _worded_alike(found, order, settings.jaccard)
        order = _left(order, removals[STEPS[1]])
    truncated: set[int] = set()
    if vectors is None:
        with _timed(seconds, "embed"):
            vectors, truncated = _embedded(found, order, settings, out / CACHE)
    with _timed(seconds, STEPS[2]):
        removals[STEPS[2]] = semantic_dedup(
            vectors,
            order,
            settings.threshold,
            settings.rule,
            mode=settings.mode,
            probes=settings.probes,
            passes=settings.passes,
            seed=settings.seed,
        )
    loss = _loss(found, order, removals[STEPS[2]])
    _check_loss(loss, settings)
    kept = _left(order, removals[STEPS[2]])
    summary = {
        "rows": len(found.ids),
        "kept": len(kept),
        "dropped": {step: len(gone) for step, gone in removals.items()},
        "malformed": len(found.rejects),
        "truncated": len(truncated),
        "loss": loss,
        "settings": settings.model_dump(mode="json", exclude_defaults=True),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    _write(found, kept, removals, truncated, partial)
    for name in ("kept.jsonl", "dropped.jsonl"):
        os.replace(partial / name, out / name)
    write_json(out / SUMMARY, summary)
    shutil.rmtree(partial)
    return summary


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what `dedup_file` did, as a table."""
    table = Printed()
    for place, column in enumerate(("step", "dropped", "seconds")):
        table.add_column(column, justify="right" if place else "left")
    counts = {"read": summary["malformed"], **summary["dropped"]}
    for step, seconds in summary["seconds"].items():
        table.add_row(step, str(counts.get(step, "")), f"{seconds:.1f}")
    console = Console()
    console.print(table)
    console.print(f"{summary['kept']} of {summary['rows']} rows kept", highlight=False)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a block takes."""
    begun = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begun


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: expected a folder, this is a file")
    own = {SUMMARY, "kept.jsonl", "dropped.jsonl", ".partial", CACHE}
    strange = sorted(path.name for path in out.glob("*") if path.name not in own)
    if strange:
        raise BadInput(f"--out {out}: it holds {strange[0]}; name a new folder")


def _vectors(path: Path) -> Vectors:
    """The vectors of a file, which stays on disk."""
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: no readable .npy file ({error})") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
        raise BadInput(f"{path}: expected a matrix of floating-point numbers in a .npy file")
    check_vectors(str(path), vectors)
    return vectors


def _read(path: Path, copy: Path, settings: DedupFileSettings) -> _Rows:
    """Look at every row once."""
    if path.suffix == ".parquet":
        write_rows(copy, (row for _, row in raw_rows(path)))  # type: ignore[misc]
    found = _Rows(copy if path.suffix == ".parquet" else path)
    known: dict[str, int] = {}
    texts: list[str] = []
    with progress("reading", "rows") as told:
        for offset, number, raw in _lines(found.path):
            place = len(found.ids)
            row = parse_row(raw, TextRow)
            if not isinstance(row, str) and row.id and row.id in known:
                row = f"id {row.id} was already used in line {known[row.id]}"
            found.offsets.append(offset)
            if isinstance(row, str):
                found.rejects.append(Reject(path.name, number, row, excerpt(raw)))
                found.ids.append("")
                found.hashes.append(b"")
                found.ranks.append(None)
                found.labels.append(())
                continue
            found.good.append(place)
            _note(found, row, raw)
            if row.id:
                known[row.id] = number
            texts.append(row.whole_text)
            if len(texts) == BATCH:
                _sketch(found, texts, settings)
                told(place, None)
    _sketch(found, texts, settings)
    if not found.ids:
        raise BadInput(f"{path}: expected rows, it has none")
    check_share(found.rejects, len(found.ids), settings.reject_share, "--reject-share")
    return found


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Byte offset, line number and content of each line that is not blank."""
    if path.suffix not in (".jsonl", ".json"):
        raise BadInput(f"{path}: expected a .jsonl or .parquet file")
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield offset, number, line
            offset += len(line)


def _note(found: _Rows, row: TextRow, raw: bytes) -> None:
    """Remember of a row what is not its text."""
    own_id = row.id or content_id(raw.decode().strip())
    found.ids.append(own_id)
    found.hashes.append(row.hash)
    found.ranks.append(_Rank.of(row, own_id))
    values = (row.source, row.capability, row.topic)
    found.labels.append(tuple(v if isinstance(v, str) else None for v in values))


def _sketch(found: _Rows, texts: list[str], settings: DedupFileSettings) -> None:
    if texts and settings.jaccard:
        found.keys.append(band_keys(texts, NGRAM))
    texts.clear()


def _left(order: Sequence[int], removals: Sequence[Removal]) -> list[int]:
    gone = {one.row for one in removals}
    return [row for row in order if row not in gone]


def _equal(hashes: Sequence[bytes], order: Sequence[int]) -> list[Removal]:
    first: dict[bytes, int] = {}
    pairs = ((row, first.setdefault(hashes[row], row)) for row in order)
    return [Removal(row, keeper, 1.0) for row, keeper in pairs if keeper != row]


def _worded_alike(found: _Rows, order: Sequence[int], threshold: float) -> list[Removal]:
    keys_NB = np.zeros((len(found.ids), found.keys[0].shape[1]), np.uint64)
    keys_NB[found.good] = np.concatenate(found.keys)
    found.keys.clear()
    recent = functools.lru_cache(BATCH)(lambda row: shingles(found.text(row), NGRAM))
    return near_copies(keys_NB, order, recent, threshold)


def _embedded(
    found: _Rows, order: Sequence[int], settings: DedupFileSettings, cache: Path
) -> tuple[Vectors, set[int]]:
    """The vectors of the rows that are left, and which of these were read in part alone."""
    embedder = Embedder(embedder_folder(settings.embedder, Path.cwd()), cache)
    rows = sorted(order)
    vectors_ND: Vectors | None = None
    truncated: set[int] = set()
    with progress("embedding", "rows") as told:
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            part = rows[start : start + TEXTS_AT_ONCE]
            embedded = embedder.embed([found.text(row) for row in part])
            if vectors_ND is None:
                width = embedded.vectors_ND.shape[1]
                # Rows that went before are never looked at; any unit vector will do.
                vectors_ND = np.zeros((len(found.ids), width), np.float32)
                vectors_ND[:, 0] = 1.0
            vectors_ND[part] = embedded.vectors_ND
            truncated.update(
                row for row, cut in zip(part, embedded.truncated_N, strict=True) if cut
            )
            told(start + len(part), len(rows))
    assert vectors_ND is not None
    return vectors_ND, truncated


def _loss(
    found: _Rows, order: Sequence[int], removals: Sequence[Removal]
) -> dict[str, dict[str, dict[str, float]]]:
    """For each label and value: rows that were compared, and the share that went."""
    compared: Counter[tuple[str, str]] = Counter()
    gone: Counter[tuple[str, str]] = Counter()
    for counter, rows in ((compared, order), (gone, [one.row for one in removals])):
        for row in rows:
            values = zip(LABELS, found.labels[row], strict=True)
            counter.update((label, value) for label, value in values if value is not None)
    table: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (label, value), count in sorted(compared.items()):
        table[label][value] = {"rows": count, "loss": gone[label, value] / count}
    return dict(table)


def _check_loss(
    loss: Mapping[str, Mapping[str, Mapping[str, float]]], settings: DedupFileSettings
) -> None:
    for label, values in loss.items():
        for value, found in values.items():
            if found["loss"] > settings.max_loss:
                raise StepFailed(
                    f"semantic duplicates take {found['loss']:.1%} of the rows of {label} {value}, "
                    f"more than --max-loss {settings.max_loss:.0%}; short, formulaic texts look "
                    "alike to an embedder: raise --threshold, or --max-loss if these rows really "
                    "repeat each other"
                )


def _write(
    found: _Rows,
    kept: Sequence[int],
    removals: Mapping[str, Sequence[Removal]],
    truncated: set[int],
    folder: Path,
) -> None:
    stays = set(kept)
    with (folder / "kept.jsonl").open("wb") as file:
        for place, (_, _, line) in enumerate(_lines(found.path)):
            if place in stays:
                file.write(line if line.endswith(b"\n") else line + b"\n")
        file.flush()
        os.fsync(file.fileno())

    def dropped() -> Iterator[dict[str, Any]]:
        for reject in found.rejects:
            yield {"step": "read", **vars(reject)}
        for step, gone in removals.items():
            for one in sorted(gone):
                row: dict[str, Any] = {"id": found.ids[one.row], "step": step}
                row |= {"reason": REASONS[step], "keeper": found.ids[one.keeper]}
                if step in MEASURES:
                    row[MEASURES[step]] = round(one.similarity, 6)
                if one.row in truncated:
                    row["truncated"] = True
                yield row

    write_rows(folder / "dropped.jsonl", dropped())
