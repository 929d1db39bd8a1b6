"""Model folders on disk: what is in one, whether it is whole, how one is loaded and written.

Knows config.json, safetensors headers and the files of a tokenizer. Knows nothing of training,
and never unpickles weights or runs code that lies in a model folder.

    check_model_folder(Path("rounds/tiny/base"))
    model = load_causal(Path("rounds/tiny/base"), torch.float32)
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from posttrain.errors import BadInput, Damaged, GuardFailed
from posttrain.models.chat import end_token_ids

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
MAX_HEADER_BYTES = 100_000_000
MAX_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies. `dtype` is the name that safetensors gives it, e.g. `BF16`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence transformers' bars for a while; they would break up a step's own progress lines."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_causal(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal language model of a folder, on the CPU.

    Raises:
        BadInput: the folder holds no model that transformers knows without running its code.
    """
    try:
        with no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: no causal language model could be loaded ({error})") from error
    return cast(PreTrainedModel, model)


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
    length = _text_config(read_config(folder)).get("max_position_embeddings")
    if not isinstance(length, int):
        raise BadInput(f"{folder / 'config.json'}: expected a number as max_position_embeddings")
    return length


def end_of_text(folder: Path) -> int:
    """Id of the token that ends a document of the model's pre-training.

    Raises:
        BadInput: config.json does not say.
    """
    end = _text_config(read_config(folder)).get("eos_token_id")
    first = end[0] if isinstance(end, list) and end else end
    if not isinstance(first, int):
        raise BadInput(f"{folder / 'config.json'}: expected a number as eos_token_id")
    return first


def hidden_size(folder: Path) -> int:
    """Numbers that a layer passes on for each token.

    Raises:
        BadInput: config.json does not say.
    """
    size = _text_config(read_config(folder)).get("hidden_size")
    if not isinstance(size, int):
        raise BadInput(f"{folder / 'config.json'}: expected a number as hidden_size")
    return size


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


def check_model_folder(folder: Path) -> None:
    """Check that a folder holds a whole model and a tokenizer that belongs to it.

    Raises:
        BadInput: a part is missing, or the tokenizer knows more tokens than the model.
        Damaged: a weight file is truncated or missing.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: expected a model folder, there is no such folder")
    config = read_config(folder)
    rows = _text_config(config).get("vocab_size")
    if not isinstance(rows, int):
        raise BadInput(f"{folder / 'config.json'}: expected a number as vocab_size")
    for name, tensor in read_tensors(folder).items():
        if name.endswith("embed_tokens.weight") and tensor.shape[0] != rows:
            raise BadInput(
                f"{tensor.file}: {name} has {tensor.shape[0]} rows, config.json says "
                f"vocab_size {rows}"
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: no tokenizer could be loaded ({error})") from error
    if len(tokenizer) > rows:
        raise BadInput(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model embeds {rows}; "
            "one of the two belongs to another model"
        )


def save_model_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    dtype: torch.dtype = torch.bfloat16,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write weights, configuration, tokenizer and chat template. The model is cast in place.

    Generation from the folder ends at every token that ends a turn.

    Args:
        model: whose weights, configuration and class are written.
        tokenizer: of the model.
        out: the folder.
        dtype: of the weights that are written.
        state: whole weights by name, where the model itself holds a share of them.

    Raises:
        GuardFailed: a weight is NaN or infinite.
    """
    for name, weights in state.items() if state is not None else model.named_parameters():
        if not torch.isfinite(weights).all():
            raise GuardFailed(f"{name} holds NaN or infinity; nothing is written to {out}")
    if state is None:
        model.to(dtype)  # type: ignore[arg-type]
    else:
        state = {name: weights.to(dtype) for name, weights in state.items()}
        model.config.dtype = dtype
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        # Trainers switch it off; a published model without it would sample without a cache.
        model.config.use_cache = True
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(end_token_ids(tokenizer)),
        )
    out.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        whole = None if state is None else dict(state)
        model.save_pretrained(out, state_dict=whole, max_shard_size=MAX_SHARD_SIZE)
    tokenizer.save_pretrained(out)


def _tensor(file: Path, entry: Mapping[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    return Tensor(file, str(entry["dtype"]), tuple(entry["shape"]), int(end) - int(begin))


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
