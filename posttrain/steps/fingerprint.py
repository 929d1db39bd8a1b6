"""Fingerprints: what a step is, as one hash and as the payload it was made from.

Literals, the content of files that are read, and the fingerprints of inputs enter; paths,
devices and counts of workers do not.

    payload = payload_of(step, run, hashes);  digest = fingerprint(payload)
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.rows import canonical_json
from posttrain.tables import write_json

MODEL_SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".txt")
NOT_READ = ("recipe.yaml", "README.md")
"""Files of a folder that no step reads as they stand: a recipe's settings enter as literals."""
_BLOCK = 1 << 20


def fingerprint(payload: Mapping[str, Any]) -> str:
    """sha256 of the payload's canonical JSON, in hex.

    Raises:
        TypeError: the payload holds a value without stable identity.
    """
    return hashlib.sha256(canonical_json(payload).encode()).hexdigest()


def without(settings: Mapping[str, Any], paths: Collection[str], at: str = "") -> dict[str, Any]:
    """A copy of nested settings that lacks the dotted paths; `*` stands for any place in a list."""
    kept = {}
    for key, value in settings.items():
        path = f"{at}.{key}" if at else key
        if path in paths:
            continue
        if isinstance(value, Mapping):
            value = without(value, paths, path)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            value = [without(one, paths, f"{path}.*") for one in value]
        kept[key] = value
    return kept


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class ContentHashes:
    """Content hashes of files and folders, remembered by size and time of change.

    A 16 GB base is read once, not at every `posttrain plan`.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: dict[str, str] = {}
        self._dirty = False
        if store.is_file():
            try:
                self._known = json.loads(store.read_text())
            except ValueError:
                # A cache that cannot be read only costs the time to hash again.
                self._known = {}

    def of(self, path: Path) -> str:
        """The content hash of a file, or of a folder's files with their relative names."""
        if path.is_dir():
            parts = [[str(p.relative_to(path)), self.of(p)] for p in _files_of(path)]
            return fingerprint({"folder": parts})
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        if key not in self._known:
            self._known[key] = file_hash(path)
            self._dirty = True
        return self._known[key]

    def save(self) -> None:
        """Write the memory to disk if it grew."""
        if self._dirty:
            # A workspace that cannot be written to may still be looked at.
            with contextlib.suppress(OSError):
                write_json(self._store, self._known)
            self._dirty = False


def _files_of(folder: Path) -> Iterator[Path]:
    is_model = (folder / "config.json").is_file()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith((".", "__pycache__")) for part in parts)
        wanted = path.suffix in MODEL_SUFFIXES if is_model else path.name not in NOT_READ
        if path.is_file() and not hidden and wanted:
            yield path


def drift(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two payloads, a line a field: `dpo.beta 0.1 → 0.2`."""
    before, after = dict(_flat(_fields(old))), dict(_flat(_fields(new)))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        a, b = before.get(key, "absent"), after.get(key, "absent")
        if a != b:
            lines.append(f"{key} {_shown(a)} → {_shown(b)}")
    return lines


def _fields(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Settings stand at the top, so that a line reads as the key a user wrote."""
    rest = {k: v for k, v in payload.items() if k != "settings"}
    return {**payload.get("settings", {}), **rest}


def _flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _flat(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    is_hash = isinstance(value, str) and len(value) == 64
    return text[:8] if is_hash else text if len(text) <= 60 else text[:57] + "…"


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
