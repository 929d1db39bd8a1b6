"""The files of a model folder: its configuration, and where each tensor lies; nothing is loaded.

Knows config.json, safetensors headers and indices. Imports neither torch nor transformers.

    read_tensors(Path("rounds/tiny/base"))["model.norm.weight"].shape
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput, Damaged

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies. `dtype` is the name that safetensors gives it, e.g. `BF16`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        BadInput: the file is missing, or no JSON object.
    """
    path = folder / "config.json"
    if (folder / ADAPTER_FILE).exists() and not path.exists():
        raise BadInput(f"{folder}: this is an adapter, not a model; merge it into its base first")
    config = _read_object(path)
    if config is None:
        raise BadInput(f"{path}: expected the JSON object of a model's configuration")
    return config


def context_length(folder: Path) -> int:
    """Tokens the model can look at.

    Raises:
        BadInput: config.json does not say.
    """
    return _number(folder, "max_position_embeddings")


def hidden_size(folder: Path) -> int:
    """Numbers that a layer passes on for each token.

    Raises:
        BadInput: config.json does not say.
    """
    return _number(folder, "hidden_size")


def vocabulary_size(folder: Path) -> int:
    """Tokens that the model embeds.

    Raises:
        BadInput: config.json does not say.
    """
    return _number(folder, "vocab_size")


def end_of_text(folder: Path) -> int:
    """Id of the token that ends a document of the model's pre-training.

    Raises:
        BadInput: config.json does not say.
    """
    return _number(folder, "eos_token_id")


def ties_embeddings(folder: Path) -> bool:
    """Whether the output layer is the embedding table; False where config.json does not say."""
    config = read_config(folder)
    return bool(config.get("tie_word_embeddings", _text_config(config).get("tie_word_embeddings")))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in a fixed order.

    Raises:
        BadInput: there are none.
        Damaged: the index names a file that is missing, or is itself unreadable.
    """
    index = folder / INDEX_FILE
    if not index.exists():
        single = folder / SINGLE_FILE
        if single.exists():
            return [single]
        pickled = sorted(p.name for p in folder.glob("*.bin")) if folder.is_dir() else []
        found = f"only {pickled[0]}, which would have to be unpickled" if pickled else "none"
        raise BadInput(f"{folder}: expected weights in {SINGLE_FILE} or shards; there are {found}")
    content = _read_object(index)
    mapping = content.get("weight_map") if content is not None else None
    if not isinstance(mapping, dict) or not mapping:
        raise Damaged(f"{index}: no weight_map; copy the model anew")
    files = [folder / name for name in sorted({str(name) for name in mapping.values()})]
    for file in files:
        if file.parent != folder or not file.exists():
            raise Damaged(f"{index}: names {file.name}, which is not in {folder}")
    return files


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by name, from the headers alone.

    Raises:
        BadInput: there are no weights.
        Damaged: a file is truncated, missing, or does not hold what the index says.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise Damaged(f"{file}: tensor {name} is in {tensors[name].file.name} as well")
            tensors[name] = tensor
    index = folder / INDEX_FILE
    if index.exists():
        mapping = (_read_object(index) or {})["weight_map"]
        placed = {name: tensor.file.name for name, tensor in tensors.items()}
        for name in sorted(set(mapping) | set(placed)):
            if mapping.get(name) != placed.get(name):
                raise Damaged(
                    f"{index}: places {name} in {mapping.get(name)}, it is in {placed.get(name)}"
                )
    return tensors


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        Damaged: the header cannot be read, or the file is shorter or longer than it says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise Damaged(f"{file}: {size} bytes do not hold a safetensors header; copy it anew")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        tensors = {
            str(name): _tensor(file, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
        end = max((int(e["data_offsets"][1]) for n, e in header.items() if n in tensors), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise Damaged(f"{file}: the safetensors header is no valid JSON; copy it anew") from error
    if 8 + length + end != size:
        raise Damaged(f"{file}: expected {8 + length + end} bytes, it has {size}; copy it anew")
    return tensors


def model_bytes(folder: Path) -> int:
    """Bytes of all weight files."""
    return sum(file.stat().st_size for file in weight_files(folder))


def _tensor(file: Path, entry: Mapping[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    return Tensor(file, str(entry["dtype"]), tuple(entry["shape"]), int(end) - int(begin))


def _number(folder: Path, key: str) -> int:
    """A number of config.json, the first one where there is a list of them."""
    found = _text_config(read_config(folder)).get(key)
    first = found[0] if isinstance(found, list) and found else found
    if not isinstance(first, int):
        raise BadInput(f"{folder / 'config.json'}: expected a number as {key}")
    return first


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
