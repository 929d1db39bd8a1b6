"""The manifest of a published step: written last, so that its existence means the step is whole.

Knows files, hashes and the order in which they become durable; knows no step's meaning.

    manifest = read_manifest(run / "round-1/dpo");  check_sizes(run / "round-1/dpo", manifest)
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput, Damaged
from posttrain.settings.base import Settings
from posttrain.steps.fingerprint import file_hash, fsync_folder
from posttrain.tables import read_json, write_json

MANIFEST = "manifest.json"
IDENTITY = "identity.json"
"""In a partial step: the fingerprint of what it will be."""
WORK = "work"
"""Folder in a partial step for checkpoints and shards; never published."""
COLLECTED = "collected.json"
"""Names the files that `posttrain gc` removed from a published step."""
_PACKAGES = ("posttrain", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm")


class PublishedFile(Settings):
    """One file of a published step."""

    sha256: str
    size: int


class Manifest(Settings):
    """Everything that is known about a published step."""

    address: str
    fingerprint: str
    payload: dict[str, Any]
    inputs: dict[str, str]
    """Input's name → the address it was read from."""
    files: dict[str, PublishedFile]
    rows: dict[str, int]
    """Table → number of rows."""
    funnel: list[dict[str, Any]]
    """Rows in, out, and dropped by reason, for each part of the step."""
    metrics: dict[str, Any]
    circumstances: dict[str, Any]
    """Device, precision, batch division: they do not define the step."""
    seconds: float
    peak_memory_mib: int
    versions: dict[str, str]
    git_commit: str | None
    argv: list[str]
    host: str
    finished: str
    """UTC, ISO 8601."""


def list_files(folder: Path) -> dict[str, PublishedFile]:
    """Hash and size of every file below a folder, each fsynced first."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] == WORK or str(name) in (MANIFEST, COLLECTED, IDENTITY):
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
        found[name.as_posix()] = PublishedFile(sha256=file_hash(path), size=path.stat().st_size)
    return found


def publish(partial: Path, final: Path, manifest: Manifest) -> None:
    """Write the manifest into the partial folder and give the folder its final name.

    What a killed step would go on from is removed only once the manifest is durable.
    """
    write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
    finish(partial, final)


def finish(partial: Path, final: Path) -> None:
    """Give a partial folder that has its manifest its final name."""
    fsync_folder(partial)
    shutil.rmtree(partial / WORK, ignore_errors=True)
    (partial / IDENTITY).unlink(missing_ok=True)
    for folder in [p for p in partial.rglob("*") if p.is_dir()] + [partial]:
        fsync_folder(folder)
    partial.rename(final)
    fsync_folder(final.parent)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a published step, or None where there is no such step.

    Raises:
        Damaged: the folder is there but its manifest cannot be read.
    """
    if not folder.is_dir():
        return None
    try:
        return Manifest.model_validate(read_json(folder / MANIFEST))
    except (BadInput, ValueError) as error:
        raise Damaged(
            f"{folder}: published without a readable manifest ({error}); move the folder away and "
            "run the same command again"
        ) from error


def collected_files(folder: Path) -> frozenset[str]:
    """Files of a published step that `posttrain gc` removed."""
    path = folder / COLLECTED
    return frozenset(read_json(path)["files"]) if path.is_file() else frozenset()


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Check that every published file is there with its size.

    Raises:
        Damaged: naming the first file that is not.
    """
    gone = collected_files(folder)
    for name, published in manifest.files.items():
        path = folder / name
        if name in gone:
            continue
        if not path.is_file():
            raise Damaged(f"{manifest.address}/{name}: published, but missing now; {_MEND}")
        size = path.stat().st_size
        if size != published.size:
            raise Damaged(
                f"{manifest.address}/{name}: {size} bytes, published with {published.size}; {_MEND}"
            )


_MEND = "restore it, or move the step's folder away and run the same command again"


def check_hashes(folder: Path, manifest: Manifest) -> list[str]:
    """Names of published files whose content changed."""
    gone = collected_files(folder)
    return [
        name
        for name, published in manifest.files.items()
        if name not in gone
        and (not (folder / name).is_file() or file_hash(folder / name) != published.sha256)
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a step computes."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """The commit a workspace stands at, or None where it is no git checkout."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def forget_peak_memory() -> None:
    """Start a new peak, so that a shared process tells the peak of each step.

    Where the kernel does not allow it (some containers), the peak is the process's so far: too
    high a figure for one step is better than no step.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> int:
    """Largest resident set of this process since `forget_peak_memory`, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def command_line() -> list[str]:
    """The command this process was started with, its program by name only."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
