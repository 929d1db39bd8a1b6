"""Members of an average: folders of weights, and adapters merged into their base as they are read.

Knows safetensors files and the adapters of peft; loads no model. A member hands out one block of a
tensor at a time, an adapter's base plus its low-rank change in float32, not rounded in between.

    member = open_member(Path("dpo-a"))
    member.tensors["lm_head.weight"].shape
"""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from posttrain.errors import BadInput, Damaged
from posttrain.models.files import ADAPTER_FILE, Tensor, read_config, read_header, read_tensors

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What safetensors calls them."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "chat_template.jinja")
INCIDENTAL_KEYS = ("_name_or_path", "transformers_version")
"""Keys of a configuration that say where a model comes from, not what it is."""

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
Rows = slice | None
"""Some rows of a tensor; None stands for all of one that has no dimensions."""


@dataclass(frozen=True)
class Change:
    """What an adapter adds to a matrix: `scale` times the product of two factors."""

    left: str
    """Name of the factor of shape (out, rank)."""
    right: str
    """Name of the factor of shape (rank, in)."""
    scale: float


@dataclass
class Member:
    """One model; `folder` is where everything but an adapter's own weights lies."""

    path: Path
    folder: Path
    tensors: dict[str, Tensor]
    adapter: Path | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Tensors that the adapter holds in full (a score head), and how it calls them."""

    def open(self, stack: ExitStack) -> "Reader":
        """Open the files until the stack is closed."""
        files = sorted({tensor.file for tensor in self.tensors.values()})
        opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}
        own = None
        if self.adapter is not None:
            own = stack.enter_context(safe_open(self.adapter, framework="pt"))
        return Reader(self, opened, own)


@dataclass(frozen=True)
class Reader:
    """The blocks of a member's tensors."""

    member: Member
    files: Mapping[Path, Any]
    adapter: Any

    def read(self, name: str, rows: Rows) -> torch.Tensor:
        """A block of a tensor; in float32 at least where an adapter changes it."""
        member = self.member
        if name in member.replaced:
            return _block(self.adapter, member.replaced[name], rows)
        block = _block(self.files[member.tensors[name].file], name, rows)
        change = member.changes.get(name)
        if change is None:
            return block
        left = _block(self.adapter, change.left, rows).float()
        right = self.adapter.get_tensor(change.right).float()
        return torch.addmm(block.float(), left, right, alpha=change.scale)


def open_member(path: Path, base: Path | None = None) -> Member:
    """A model folder, or an adapter with its base.

    Args:
        path: the folder.
        base: of an adapter, the model it was trained on; None takes what its configuration names.

    Raises:
        BadInput: no weights, weights that are no floating-point numbers, or an adapter that is not
            plain LoRA or whose base is not there.
        Damaged: a file is truncated, or an adapter does not fit its base.
    """
    if (path / ADAPTER_FILE).exists():
        return _with_adapter(path, base)
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise BadInput(
                f"{tensor.file}: {name} is {tensor.dtype}, expected one of {sorted(FLOATS)}"
            )
    return Member(path, path, tensors)


def check_same(first: Member, member: Member) -> None:
    """Two members differ in nothing but their weights' values.

    Raises:
        BadInput: a tensor, the configuration, the vocabulary or the chat template differs.
    """
    for name in sorted(set(first.tensors) | set(member.tensors)):
        if name not in member.tensors or name not in first.tensors:
            has, lacks = (first, member) if name in first.tensors else (member, first)
            raise BadInput(f"tensor {name} is in {has.path} but not in {lacks.path}")
        one, other = first.tensors[name], member.tensors[name]
        for what, a, b in (("shape", one.shape, other.shape), ("dtype", one.dtype, other.dtype)):
            if a != b:
                raise BadInput(f"{what} of {name}: {a} in {first.path}, {b} in {member.path}")
    left, right = (_without(read_config(m.folder), INCIDENTAL_KEYS) for m in (first, member))
    for key in sorted(set(left) | set(right)):
        if left.get(key) != right.get(key):
            raise BadInput(
                f"config.json: {key} is {left.get(key)!r} in {first.path}, {right.get(key)!r} in "
                f"{member.path}"
            )
    for file in TOKENIZER_FILES:
        if _content(first.folder / file) != _content(member.folder / file):
            raise BadInput(f"{file} differs between {first.path} and {member.path}")


def _with_adapter(path: Path, base: Path | None) -> Member:
    config = _adapter_config(path)
    base = base or Path(str(config.get("base_model_name_or_path")))
    if not (base / "config.json").is_file():
        raise BadInput(f"{path}: an adapter of {base}, where no model lies; name it with --base")
    whole = open_member(base)
    weights = path / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise BadInput(f"{path}: expected {ADAPTER_WEIGHTS} beside {ADAPTER_FILE}")
    own = read_header(weights)
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    pairs: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name, tensor in own.items():
        plain = name.removeprefix(_PREFIX)
        factor = _FACTOR.fullmatch(plain)
        if factor:
            pairs.setdefault(f"{factor[1]}.weight", {})[factor[2]] = name
        elif plain in whole.tensors and tensor.shape == whole.tensors[plain].shape:
            replaced[plain] = name
        else:
            raise BadInput(f"{weights}: {name} is neither a LoRA factor nor a tensor of {base}")
    changes = {}
    for name, pair in pairs.items():
        known = whole.tensors.get(name)
        if known is None or set(pair) != {"A", "B"}:
            raise Damaged(f"{weights}: the factors of {name} do not fit {base}")
        shape = (own[pair["B"]].shape[0], own[pair["A"]].shape[1])
        if known.shape != shape or own[pair["A"]].shape[0] != rank:
            raise Damaged(
                f"{weights}: {name} has shape {known.shape}, its factors make {shape} of rank "
                f"{own[pair['A']].shape[0]}, and the configuration says {rank}"
            )
        changes[name] = Change(pair["B"], pair["A"], scale)
    return Member(path, base, whole.tensors, weights, changes, replaced)


def _adapter_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / ADAPTER_FILE).read_text())
    except ValueError:
        config = None
    if not isinstance(config, dict) or not {"r", "lora_alpha"} <= set(config):
        raise BadInput(f"{path / ADAPTER_FILE}: expected the configuration of a LoRA adapter")
    odd = {
        "peft_type": config.get("peft_type") not in (None, "LORA"),
        "use_dora": bool(config.get("use_dora")),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "bias": config.get("bias") not in (None, "none"),
        "rank_pattern": bool(config.get("rank_pattern")),
        "alpha_pattern": bool(config.get("alpha_pattern")),
    }
    wrong = [name for name, is_odd in odd.items() if is_odd]
    if wrong:
        raise BadInput(
            f"{path / ADAPTER_FILE}: {wrong[0]} is {config[wrong[0]]!r}, only plain LoRA can be "
            "merged here; merge it with peft first"
        )
    return config


def _block(file: Any, name: str, rows: Rows) -> torch.Tensor:
    found: torch.Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
    return found


def _without(config: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
