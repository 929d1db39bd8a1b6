"""The mean of several models' weights (section 4.1.5), streamed tensor by tensor.

Knows safetensors files; loads no model. Each element is summed in float32, divided once, and
cast back once, which rounds as the exact mean would; a sum in bfloat16 gets a third of all
elements wrong. Memory is bounded by a block of rows, whatever the models' size.

    average_models([Path("dpo-a"), Path("dpo-b")], Path("dpo"))
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from posttrain.errors import BadInput, Damaged, GuardFailed
from posttrain.models.folders import (
    ADAPTER_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    Tensor,
    read_config,
    read_tensors,
    ties_embeddings,
    weight_files,
)

BLOCK_ELEMENTS = 4_000_000
"""Elements of one tensor that are in memory at a time, for each member."""
MAX_SHARD_BYTES = 5_000_000_000
FLOATS = {"F64", "F32", "F16", "BF16"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "chat_template.jinja")
TIED = ("embed_tokens.weight", "lm_head.weight")
"""How the names of the tensors end that `tie_word_embeddings` makes one."""
INCIDENTAL_KEYS = ("_name_or_path", "transformers_version")
"""Keys of a configuration that say where a model comes from, not what it is."""

Plan = list[list[tuple[str, Tensor]]]


@dataclass(frozen=True)
class AverageReport:
    """What was averaged."""

    num_members: int
    num_tensors: int
    num_parameters: int
    num_bytes: int
    """Bytes of the published weights."""


def average_models(
    members: Sequence[Path],
    out: Path,
    weights: Sequence[float] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> AverageReport:
    """Write the weighted mean of the members to `out`; all other files are the first member's.

    Args:
        members: Folders of models that differ in nothing but their weights' values. They may be
            sharded in different ways. Each tensor keeps its members' dtype.
        out: The folder to write.
        weights: One non-negative weight a member; None weighs all the same.
        max_shard_bytes: Above this size the weights are split into shards with an index.

    Raises:
        BadInput: members do not fit together, or a member is an adapter; says which and where.
        Damaged: a member's tensor holds NaN or infinity, or its file is truncated.
        GuardFailed: the configuration ties two tensors that differ in the result.
    """
    shares = _shares(members, weights)
    tensors = [_read_member(member) for member in members]
    for member, found in zip(members[1:], tensors[1:], strict=True):
        _check_same_tensors(members[0], tensors[0], member, found)
        _check_same_files(members[0], member)
    out.mkdir(parents=True, exist_ok=True)
    plan = _shards(tensors[0], max_shard_bytes)
    names = _shard_names(len(plan))
    with contextlib.ExitStack() as stack:
        opened = [_open_all(stack, found) for found in tensors]
        for name, shard in zip(names, plan, strict=True):
            with (out / name).open("wb") as stream:
                stream.write(_header(shard))
                for key, tensor in shard:
                    readers = [files[t[key].file] for files, t in zip(opened, tensors, strict=True)]
                    _write_mean(stream, key, tensor, readers, members, shares)
                stream.flush()
                os.fsync(stream.fileno())
    num_bytes = sum(t.num_bytes for t in tensors[0].values())
    if len(plan) > 1:
        weight_map = {key: n for n, shard in zip(names, plan, strict=True) for key, _ in shard}
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True))
    _copy_other_files(members[0], out)
    _check_tied(out)
    return AverageReport(
        num_members=len(members),
        num_tensors=len(tensors[0]),
        num_parameters=sum(math.prod(t.shape) for t in tensors[0].values()),
        num_bytes=num_bytes,
    )


def _shares(members: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    """Each member's factor; all 1 where the mean is uniform, so that nothing is multiplied."""
    if not members:
        raise BadInput("expected at least one model to average")
    if weights is None:
        return [1.0] * len(members)
    if len(weights) != len(members):
        raise BadInput(f"expected {len(members)} weights, one a member, got {len(weights)}")
    if any(not math.isfinite(w) or w < 0 for w in weights) or sum(weights) <= 0:
        raise BadInput(f"expected weights >= 0 with a positive sum, got {list(weights)}")
    return list(weights)


def _read_member(member: Path) -> dict[str, Tensor]:
    if (member / ADAPTER_FILE).exists():
        raise BadInput(
            f"{member}: an adapter; the mean of adapters is not the mean of models. Merge it first"
        )
    tensors = read_tensors(member)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise BadInput(
                f"{tensor.file}: {name} is {tensor.dtype}, expected one of {sorted(FLOATS)}"
            )
    return tensors


def _check_same_tensors(
    first: Path, expected: Mapping[str, Tensor], member: Path, found: Mapping[str, Tensor]
) -> None:
    for name in sorted(set(expected) | set(found)):
        if name not in found or name not in expected:
            has, lacks = (first, member) if name in expected else (member, first)
            raise BadInput(f"tensor {name} is in {has} but not in {lacks}")
        one, other = expected[name], found[name]
        for what, a, b in (("shape", one.shape, other.shape), ("dtype", one.dtype, other.dtype)):
            if a != b:
                raise BadInput(f"{what} of {name}: {a} in {first}, {b} in {member}")


def _check_same_files(first: Path, member: Path) -> None:
    """The same architecture, vocabulary and chat template."""
    one, other = (_without(read_config(m), INCIDENTAL_KEYS) for m in (first, member))
    for key in sorted(set(one) | set(other)):
        if one.get(key) != other.get(key):
            raise BadInput(
                f"config.json: {key} is {one.get(key)!r} in {first}, {other.get(key)!r} in {member}"
            )
    for name in TOKENIZER_FILES:
        if _content(first / name) != _content(member / name):
            raise BadInput(f"{name} differs between {first} and {member}")


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> Plan:
    """Tensors by name, cut into shards wherever the next one would not fit."""
    plan: Plan = [[]]
    size = 0
    for item in sorted(tensors.items()):
        if plan[-1] and size + item[1].num_bytes > max_bytes:
            plan.append([])
            size = 0
        plan[-1].append(item)
        size += item[1].num_bytes
    return plan


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _header(shard: Sequence[tuple[str, Tensor]]) -> bytes:
    """What stands before the data of a safetensors file."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in shard:
        end = begin + tensor.num_bytes
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _open_all(stack: contextlib.ExitStack, tensors: Mapping[str, Tensor]) -> dict[Path, Any]:
    files = sorted({tensor.file for tensor in tensors.values()})
    return {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}


def _write_mean(
    stream: BinaryIO,
    name: str,
    tensor: Tensor,
    readers: Sequence[Any],
    members: Sequence[Path],
    shares: Sequence[float],
) -> None:
    for rows in _blocks(tensor.shape):
        total: torch.Tensor | None = None
        dtype = torch.float32
        for reader, member, share in zip(readers, members, shares, strict=True):
            block = reader.get_tensor(name) if rows is None else reader.get_slice(name)[rows]
            dtype = block.dtype
            if not torch.isfinite(block).all():
                raise Damaged(f"{member}: {name} holds NaN or infinity; train this member again")
            part = block.to(torch.promote_types(dtype, torch.float32)) * share
            total = part if total is None else total.add_(part)
        assert total is not None
        mean = total.div_(sum(shares)).to(dtype).contiguous()
        stream.write(mean.reshape(-1).view(torch.uint8).numpy().data)


def _check_tied(folder: Path) -> None:
    """Tied weights that are stored twice must be equal; loading would drop one of them unseen."""
    if not ties_embeddings(folder):
        return
    tensors = read_tensors(folder)
    pair = [name for name in sorted(tensors) if name.endswith(TIED)]
    if len(pair) < 2:
        return
    with contextlib.ExitStack() as stack:
        files = _open_all(stack, tensors)
        one, other = (files[tensors[name].file].get_slice(name) for name in pair)
        for rows in _blocks(tensors[pair[0]].shape):
            if tensors[pair[0]].shape != tensors[pair[1]].shape or not torch.equal(
                one[rows], other[rows]
            ):
                raise GuardFailed(
                    f"{folder}: config.json ties {pair[0]} and {pair[1]}, but they differ; set "
                    "tie_word_embeddings to false in the members, or train them with tied weights"
                )


def _blocks(shape: tuple[int, ...]) -> Iterator[slice | None]:
    """Slices of the first dimension; None stands for a tensor without dimensions."""
    if not shape:
        yield None
        return
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _copy_other_files(member: Path, out: Path) -> None:
    weights = {file.name for file in weight_files(member)} | {INDEX_FILE}
    for file in sorted(member.iterdir()):
        if file.is_file() and file.name not in weights:
            shutil.copyfile(file, out / file.name)
