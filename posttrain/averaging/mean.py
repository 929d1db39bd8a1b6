"""The mean of several models' weights (section 4.1.5), streamed tensor by tensor.

Knows safetensors files; loads no model. Each element is summed in float64, divided once, and
rounded once, as the exact mean would be; a sum in bfloat16 gets a third of all elements wrong, one
in float32 a few in a hundred million. Memory is bounded by a block of rows a core, whatever the
models' size.

    average_models([Path("dpo-a"), Path("dpo-b")], Path("dpo"))
"""

import contextlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from posttrain.averaging.members import FLOATS, Member, Reader, check_same, open_member
from posttrain.errors import BadInput, Damaged, GuardFailed
from posttrain.models.files import INDEX_FILE, SINGLE_FILE, Tensor, ties_embeddings, weight_files

BLOCK_ELEMENTS = 1_000_000
"""Elements of one tensor that are read at a time, from each member."""
CHUNK_ELEMENTS = 1 << 18
"""Elements that are summed at a time: they stay in the processor's cache."""
BITS_LOST = 45
"""Of float64's mantissa of 52 bits where bfloat16 keeps 7."""
MOST_THREADS = 8
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
        parts: list[_Part] = []
        for name, shard in zip(names, plan, strict=True):
            stream = stack.enter_context((out / name).open("wb"))
            begin = stream.write(_header(shard))
            stream.flush()
            for key, tensor in shard:
                parts += _parts_of(key, tensor, stream.fileno(), begin)
                begin += tensor.num_bytes
        _write_all(parts, opened, shares)
        for handle in {part.handle for part in parts}:
            os.fsync(handle)
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


class _Part(NamedTuple):
    """Some rows of a tensor, and where their mean stands in a file."""

    name: str
    tensor: Tensor
    rows: slice | None
    handle: int
    offset: int


def _parts_of(name: str, tensor: Tensor, handle: int, begin: int) -> Iterator[_Part]:
    row_bytes = tensor.num_bytes // tensor.shape[0] if tensor.shape and tensor.shape[0] else 0
    for rows in _blocks(tensor.shape):
        offset = begin + (rows.start * row_bytes if rows is not None else 0)
        yield _Part(name, tensor, rows, handle, offset)


def _write_all(parts: Sequence[_Part], members: Sequence[Member], shares: Sequence[float]) -> None:
    """Every part's mean at its place; one thread a core, each on parts of its own."""
    count = min(MOST_THREADS, len(os.sched_getaffinity(0)), max(1, len(parts)))
    left, lock, stop = iter(parts), threading.Lock(), threading.Event()

    def work() -> None:
        with contextlib.ExitStack() as stack:
            readers = [member.open(stack) for member in members]
            # Who ends, ends all: either nothing is left, or a part has failed.
            stack.callback(stop.set)
            while not stop.is_set():
                with lock:
                    part = next(left, None)
                if part is None:
                    return
                _write_mean(part, readers, shares)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as pool:
            for done in [pool.submit(work) for _ in range(count)]:
                done.result()
    finally:
        torch.set_num_threads(threads)


def _write_mean(part: _Part, readers: Sequence[Reader], shares: Sequence[float]) -> None:
    whole, uniform = sum(shares), len(set(shares)) == 1
    blocks = [reader.read(part.name, part.rows).reshape(-1) for reader in readers]
    mean = torch.empty(len(blocks[0]), dtype=FLOATS[part.tensor.dtype])
    # The same for all chunks: fresh memory costs more than the sums do.
    size = min(CHUNK_ELEMENTS, len(mean))
    totals, others = (torch.empty(size, dtype=torch.float64) for _ in range(2))
    for start in range(0, len(mean), CHUNK_ELEMENTS):
        chunks = [block[start : start + CHUNK_ELEMENTS] for block in blocks]
        num = len(chunks[0])
        total, other = totals[:num], others[:num]
        total.copy_(chunks[0])
        if not uniform:
            total.mul_(shares[0])
        for chunk, share in zip(chunks[1:], shares[1:], strict=True):
            total.add_(other.copy_(chunk), alpha=1.0 if uniform else share)
        # Not a number or infinity in one element makes the sum of all the same.
        if not math.isfinite(total.sum().item()):
            _blame(part.name, readers, chunks)
        total.div_(len(chunks) if uniform else whole)
        round_once(total, mean[start : start + CHUNK_ELEMENTS], other)
    data: memoryview[int] = mean.view(torch.uint8).numpy().data
    offset = part.offset
    while data:
        written = os.pwrite(part.handle, data, offset)
        data, offset = data[written:], offset + written


def _blame(name: str, readers: Sequence[Reader], parts: Sequence[torch.Tensor]) -> None:
    for reader, part in zip(readers, parts, strict=True):
        if not torch.isfinite(part).all():
            raise Damaged(
                f"{reader.member.path}: {name} holds NaN or infinity; train this member again"
            )
    raise Damaged(f"{name}: the members' sum is not finite; look at their weights")


def round_once(values: torch.Tensor, out: torch.Tensor, scratch: torch.Tensor) -> None:
    """Write float64 values as another type, each as the nearest that this type has.

    torch rounds float64 to bfloat16 by way of float32, and what that rounds onto the middle between
    two neighbours goes to the even one, wherever it came from. So bfloat16's normal numbers are
    rounded here first, on their bits.

    Args:
        values: are spoilt.
        out: of the same length.
        scratch: of the values' shape and type; is spoilt.
    """
    if out.dtype == torch.float16:
        out.copy_(torch.from_numpy(values.numpy().astype(np.float16)))
        return
    if out.dtype == torch.bfloat16:
        bits, odd = values.view(torch.int64), scratch.view(torch.int64)
        torch.bitwise_right_shift(bits, BITS_LOST, out=odd)
        # To the nearest, and from the middle to the even one.
        bits += odd.bitwise_and_(1).add_((1 << (BITS_LOST - 1)) - 1)
        bits.bitwise_and_(-1 << BITS_LOST)
    out.copy_(values)


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
