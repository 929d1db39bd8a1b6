"""Deduplicates a file of rows outside of any run: equal texts, shared wording, near vectors.

Knows the rows that users bring, and keeps them as they are: a row that stays is written as its line
was. Holds vectors and a few numbers a row in memory, and reads a text again where it needs it.
Suffixes: N rows of the file, B bands.

    dedup_file(DedupFileSettings(), Path("rows.jsonl"), Path("out"))["kept"]
"""

import functools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Printed

from posttrain.dedup import Removal, semantic_dedup
from posttrain.dedup.contract import Vectors, check_vectors
from posttrain.dedup.equal import equal_rows
from posttrain.dedup.minhash import band_keys, near_copies, shingles
from posttrain.dedup.prefixes import SharedPrefixes
from posttrain.dedup.words import Hashes
from posttrain.embedding import CACHE, Embedder, embedder_folder
from posttrain.errors import BadInput, StepFailed
from posttrain.out_folder import SUMMARY, OutFolder
from posttrain.progress import progress
from posttrain.settings.data_options import DedupFileSettings
from posttrain.tables import (
    check_share,
    json_file_lines,
    raw_rows,
    write_json,
    write_rows,
)
from posttrain.user_rows import LABELS, TextRows

NGRAM = 5
"""Words of a shingle."""
BATCH = 1024
TEXTS_AT_ONCE = 8192
"""Texts that are in memory together while they are embedded."""
STEPS = ("exact_duplicates", "minhash", "semantic_dedup")
MEASURES = {"minhash": "jaccard", "semantic_dedup": "cosine"}
REASONS = dict(zip(STEPS, ("equal text", "shared wording", "near duplicate"), strict=True))


def dedup_file(settings: DedupFileSettings, rows: Path, out: Path) -> dict[str, Any]:
    """Write `kept.jsonl`, `dropped.jsonl` and `summary.json` into a folder; the summary.

    Rows that have `quality`, `difficulty` or `score` are compared best first, by (quality x
    difficulty, score, difficulty, hash of the id); else the first in the file stays.

    Raises:
        BadInput: no such file, too many malformed rows, vectors that do not fit, no embedder, or a
            folder that holds something else.
        StepFailed: semantic duplicates take more than `max_loss` of a source, capability or topic.
    """
    with OutFolder(out, ("kept.jsonl", "dropped.jsonl"), (CACHE,)) as target:
        return _dedup(settings, rows, target)


def _dedup(settings: DedupFileSettings, rows: Path, target: OutFolder) -> dict[str, Any]:
    vectors = None if settings.vectors is None else _vectors(settings.vectors)
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        found, keys = _read(rows, target.partial / "rows.jsonl", settings)
    if vectors is not None and len(vectors) != len(found.ids):
        raise BadInput(
            f"{settings.vectors}: {len(vectors)} vectors for the {len(found.ids)} rows of {rows}; "
            "expected one for each row, in their order"
        )
    removals: dict[str, list[Removal]] = {}
    order = found.order()
    with _timed(seconds, STEPS[0]):
        equal = equal_rows([found.hashes[row] for row in order])
        removals[STEPS[0]] = [Removal(order[r.row], order[r.keeper], 1.0) for r in equal]
    order = _left(order, removals[STEPS[0]])
    if settings.jaccard:
        with _timed(seconds, STEPS[1]):
            removals[STEPS[1]] = _worded_alike(found, keys, order, settings.jaccard)
        order = _left(order, removals[STEPS[1]])
    truncated: set[int] = set()
    if vectors is None:
        with _timed(seconds, "embed"):
            vectors, truncated = _embedded(found, order, settings, target.folder / CACHE)
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
    _write(found, kept, removals, truncated, target.partial)
    write_json(target.partial / SUMMARY, summary)
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


def _read(path: Path, copy: Path, settings: DedupFileSettings) -> tuple[TextRows, list[Hashes]]:
    """Look at every row once; sketches of the good ones, batch by batch."""
    if path.suffix == ".parquet":
        write_rows(copy, (row for _, row in raw_rows(path)))  # type: ignore[misc]
    found = TextRows(copy if path.suffix == ".parquet" else path)
    keys: list[Hashes] = []
    texts: list[str] = []

    def sketch() -> None:
        if texts and settings.jaccard:
            keys.append(band_keys(texts, NGRAM))
        texts.clear()

    with progress("reading", "rows") as told:
        for row in found.read():
            texts.append(row.whole_text)
            if len(texts) == BATCH:
                sketch()
                told(len(found.ids), None)
    sketch()
    check_share(found.rejects, len(found.ids), settings.reject_share, "--reject-share")
    if not found.good:
        raise BadInput(f"{path}: expected rows, it has none")
    return found, keys


def _left(order: Sequence[int], removals: Sequence[Removal]) -> list[int]:
    gone = {one.row for one in removals}
    return [row for row in order if row not in gone]


def _worded_alike(
    found: TextRows, keys: Sequence[Hashes], order: Sequence[int], threshold: float
) -> list[Removal]:
    keys_NB = np.zeros((len(found.ids), keys[0].shape[1]), np.uint64)
    keys_NB[found.good] = np.concatenate(keys)
    recent = functools.lru_cache(BATCH)(lambda row: shingles(found.text(row), NGRAM))
    return near_copies(keys_NB, order, recent, threshold)


def _embedded(
    found: TextRows, order: Sequence[int], settings: DedupFileSettings, cache: Path
) -> tuple[Vectors, set[int]]:
    """The vectors of the rows that are left, and which of these were read in part alone."""
    embedder = Embedder(embedder_folder(settings.embedder, Path.cwd()), cache)
    rows = sorted(order)
    vectors_ND: Vectors | None = None
    truncated: set[int] = set()
    shared = SharedPrefixes()
    for row in rows:
        shared.add(found.text(row))
    with progress("embedding", "rows") as told:
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            part = rows[start : start + TEXTS_AT_ONCE]
            embedded = embedder.embed([shared.without(found.text(row)) for row in part])
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
    found: TextRows, order: Sequence[int], removals: Sequence[Removal]
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
    found: TextRows,
    kept: Sequence[int],
    removals: Mapping[str, Sequence[Removal]],
    truncated: set[int],
    folder: Path,
) -> None:
    stays = set(kept)
    with (folder / "kept.jsonl").open("wb") as file:
        for place, (_, _, line) in enumerate(json_file_lines(found.path)):
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
