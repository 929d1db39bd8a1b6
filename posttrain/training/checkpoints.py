"""Which checkpoint a killed training continues from.

Knows the files that a transformers checkpoint consists of. transformers writes a checkpoint file
by file and would resume from the highest number, complete or not: with a missing optimizer
state it goes on with a fresh one, without a word.

    newest_complete_checkpoint(Path("sft.partial/work"))
"""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from posttrain.errors import Damaged
from posttrain.models.files import INDEX_FILE, read_header, read_tensors
from posttrain.training.ranks import main_first, num_ranks

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
"""As one process writes it, and as FSDP does."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
IDENTITY_FILE = "identity.json"
METRICS_FILE = "metrics.jsonl"


def prepare_work(work: Path, identity: str) -> Path | None:
    """The checkpoint to continue from, or None to start afresh.

    Checkpoints of another training (`identity` differs: other rows, settings or base) are
    removed, since transformers does not notice the difference.
    """
    with main_first():
        work.mkdir(parents=True, exist_ok=True)
        path = work / IDENTITY_FILE
        if not path.exists() or path.read_text() != identity:
            for folder in _numbered(work).values():
                shutil.rmtree(folder)
            (work / METRICS_FILE).unlink(missing_ok=True)
            path.write_text(identity)
        return newest_complete_checkpoint(work, num_ranks())


def newest_complete_checkpoint(work: Path, ranks: int = 1) -> Path | None:
    """The whole checkpoint with the most steps; incomplete ones are removed.

    One of another number of processes is incomplete: each process has its own random state.
    """
    newest = None
    for _, folder in sorted(_numbered(work).items()):
        if _is_complete(folder, ranks):
            newest = folder
        else:
            shutil.rmtree(folder)
    return newest


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state: `global_step`, `max_steps`, and `log_history`, one entry a step."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text())
    return state


def _numbered(work: Path) -> dict[int, Path]:
    found = {}
    for folder in work.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and folder.is_dir():
            found[int(match.group(1))] = folder
    return found


def _is_complete(folder: Path, ranks: int) -> bool:
    try:
        read_state(folder)
    except (OSError, ValueError):
        return False
    # torch writes zip archives, whose directory stands at the end: a cut file is none.
    states = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{n}.pth" for n in range(ranks)]
    optimizers = [name for name in OPTIMIZER_FILES if (folder / name).is_file()]
    # DeepSpeed keeps a folder of shards, and names it in a file that is written last.
    if not optimizers and not (folder / "latest").is_file():
        return False
    if not all(zipfile.is_zipfile(folder / n) for n in (*optimizers, "scheduler.pt", *states)):
        return False
    try:
        if (folder / ADAPTER_WEIGHTS).exists():
            read_header(folder / ADAPTER_WEIGHTS)
        elif (folder / INDEX_FILE).exists() or (folder / "model.safetensors").exists():
            read_tensors(folder)
        else:
            return False
    except Damaged:
        return False
    return True
