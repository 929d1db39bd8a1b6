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

from posttrain.averaging.members import FLOATS, Reader, check_same, open_member
from posttrain.errors import BadInput, Damaged, GuardFailed
from posttrain.models.folders import (
    INDEX_FILE,
    SINGLE_FILE,
    Tensor,
    ties_embeddings,
    weight_files,
)

BLOCK_ELEMENTS = 4_000_000
"""Elements of one tensor that are in memory at a time, for each member."""
MAX_SHARD_BYTES = 5_000_000_000
TIED = ("embed_tokens.weight", "lm_head.weight")
"""How the names of the tensors end that `tie_word_embeddings` makes one."""
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
    base: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> AverageReport:
    """Write the weighted mean of the members to `out`; all other files are the first member's.

    Args:
        members: Folders of models that differ in nothing but their weights' values. They may be
            sharded in different ways. Each tensor keeps its members' dtype. Adapters (LoRA) are
            merged into their base first, without rounding.
        out: The folder to write.
        weights: One non-negative weight a member; None weighs all the same.
        base: The model that adapters were trained on; None takes what their files name.
        max_shard_bytes: Above this size the weights are split into shards with an index.

    Raises:
        BadInput: members do not fit together, or an adapter is not plain LoRA; says which and
            where.
        Damaged: a member's tensor holds NaN or infinity, or its file is truncated.
        GuardFailed: the configuration ties two tensors that differ in the result.
    """
    shares = _shares(members, weights)
    opened = [open_member(member, base) for member in members]
    first = opened[0]
    for member in opened[1:]:
        check_same(first, member)
    out.mkdir(parents=True, exist_ok=True)
    plan = _shards(first.tensors, max_shard_bytes)
    names = _shard_names(len(plan))
    with contextlib.ExitStack() as stack:
        readers = [member.open(stack) for member in opened]
        for name, shard in zip(names, plan, strict=True):
            with (out / name).open("wb") as stream:
                stream.write(_header(shard))
                for key, tensor in shard:
                    _write_mean(stream, key, tensor, readers, shares)
                stream.flush()
                os.fsync(stream.fileno())
    num_bytes = sum(t.num_bytes for t in first.tensors.values())
    if len(plan) > 1:
        weight_map = {key: n for n, shard in zip(names, plan, strict=True) for key, _ in shard}
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True))
    _copy_other_files(first.folder, out)
    _check_tied(out)
    return AverageReport(
        num_members=len(members),
        num_tensors=len(first.tensors),
        num_parameters=sum(math.prod(t.shape) for t in first.tensors.values()),
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


def _write_mean(
    stream: BinaryIO,
    name: str,
    tensor: Tensor,
    readers: Sequence[Reader],
    shares: Sequence[float],
) -> None:
    for rows in _blocks(tensor.shape):
        total: torch.Tensor | None = None
        for reader, share in zip(readers, shares, strict=True):
            block = reader.read(name, rows)
            if not torch.isfinite(block).all():
                raise Damaged(
                    f"{reader.member.path}: {name} holds NaN or infinity; train this member again"
                )
            part = block.to(torch.promote_types(block.dtype, torch.float32)) * share
            total = part if total is None else total.add_(part)
        assert total is not None
        mean = total.div_(sum(shares)).to(FLOATS[tensor.dtype]).contiguous()
        stream.write(mean.reshape(-1).view(torch.uint8).numpy().data)


def _check_tied(folder: Path) -> None:
    """Tied weights that are stored twice must be equal; loading would drop one of them unseen."""
    if not ties_embeddings(folder):
        return
    whole = open_member(folder)
    pair = [name for name in sorted(whole.tensors) if name.endswith(TIED)]
    if len(pair) < 2:
        return
    one, other = (whole.tensors[name] for name in pair)
    with contextlib.ExitStack() as stack:
        reader = whole.open(stack)
        for rows in _blocks(one.shape):
            same = one.shape == other.shape and torch.equal(
                reader.read(pair[0], rows), reader.read(pair[1], rows)
            )
            if not same:
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
