"""Keeps the shards of a command beside its output, so that a killed command goes on where it was.

Knows a folder, the lock on it, and what its shards were made from. Knows nothing of what a shard
holds (`posttrain.sampling.shards` does).

    with kept_shards(Path("out.parts"), payload_of) as shards:
        ...
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput
from posttrain.steps.fingerprint import ContentHashes, drift, fingerprint
from posttrain.steps.lock import run_lock
from posttrain.tables import read_json, write_json

_SHARDS, _RECORD, _HASHES = "shards", "command.json", "hashes.json"
_OURS = (_SHARDS, _RECORD, _HASHES, "rows.jsonl", ".lock", ".holder.json")


def check_folder(folder: Path) -> None:
    """Check that a folder, if it is there, is one that this module made: it will be deleted.

    Raises:
        BadInput: it is a file, or holds something else.
    """
    if not folder.exists():
        return
    strange = [p.name for p in folder.glob("*") if p.name.removesuffix(".tmp") not in _OURS]
    if strange or not folder.is_dir():
        found = f"it holds {min(strange)}" if strange else "it is a file"
        raise BadInput(
            f"{folder}: shards would be kept in this folder, but {found}; move it away or name "
            "another --out"
        )


@contextmanager
def kept_shards(
    folder: Path, payload_of: Callable[[ContentHashes], Mapping[str, Any]]
) -> Iterator[Path]:
    """Hold the folder; the place for shards in it. `rows.jsonl` may stand beside them.

    The folder goes when the block ends well, and when there is no shard to keep.

    Args:
        folder: beside the output.
        payload_of: what the shards are made from, given hashes of files that are remembered.

    Raises:
        BadInput: its shards were made from something else; says what.
        Busy: another process holds it.
    """
    check_folder(folder)
    shards, record = folder / _SHARDS, folder / _RECORD
    held = done = False
    try:
        with run_lock(folder):
            held = True
            hashes = ContentHashes(folder / _HASHES)
            payload = dict(payload_of(hashes))
            hashes.save()
            if any(shards.glob("*.jsonl")):
                _check_same(folder, read_json(record), payload)
            write_json(record, {"fingerprint": fingerprint(payload), "payload": payload})
            yield shards
            done = True
    finally:
        if held and (done or not any(shards.glob("*.jsonl"))):
            shutil.rmtree(folder, ignore_errors=True)


def _check_same(folder: Path, record: Mapping[str, Any], payload: Mapping[str, Any]) -> None:
    if record.get("fingerprint") == fingerprint(payload):
        return
    differs = "; ".join(drift(record.get("payload", {}), payload))
    raise BadInput(
        f"{folder}: the shards in it are of another command ({differs}); give its options, "
        "delete the folder, or name another --out"
    )
