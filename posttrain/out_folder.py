"""The folder that a command about a file writes: its files appear whole, the summary last.

with OutFolder(Path("out"), ("kept.jsonl", "dropped.jsonl")) as partial:
    …  # write partial / "kept.jsonl" and partial / "dropped.jsonl"
"""

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from posttrain.errors import BadInput

SUMMARY = "summary.json"
_PARTIAL = ".partial"


class OutFolder:
    """A folder of our own; `partial` is where its files are made."""

    def __init__(self, folder: Path, files: tuple[str, ...], beside: tuple[str, ...] = ()) -> None:
        """Make the folder.

        Args:
            folder: what `--out` names.
            files: what will be written; an earlier command's files of these names are replaced.
            beside: what else may lie there.

        Raises:
            BadInput: it is a file, or holds something that is not ours.
        """
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"--out {folder}: expected a folder, this is a file")
        own = {*files, *beside, SUMMARY, _PARTIAL}
        strange = sorted(path.name for path in folder.glob("*") if path.name not in own)
        if strange:
            raise BadInput(f"--out {folder}: it holds {strange[0]}; name a new folder")
        self.folder, self._files = folder, (*files, SUMMARY)
        self.partial = folder / _PARTIAL

    def __enter__(self) -> Self:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            # Without its summary a folder is known to be half replaced.
            (self.folder / SUMMARY).unlink(missing_ok=True)
            for name in self._files:
                os.replace(self.partial / name, self.folder / name)
        shutil.rmtree(self.partial, ignore_errors=True)
