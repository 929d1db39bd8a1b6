"""Model folders with transformers: whether one is whole, how one is loaded and written.

Knows transformers' models and tokenizers; `posttrain.models.files` reads the files themselves.
Never unpickles weights or runs code that lies in a model folder.

    check_model_folder(Path("rounds/tiny/base"))
    model = load_causal(Path("rounds/tiny/base"), torch.float32)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from posttrain.errors import BadInput, GuardFailed
from posttrain.models.chat import end_token_ids
from posttrain.models.files import read_tensors, vocabulary_size

MAX_SHARD_SIZE = "5GB"


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


def check_model_folder(folder: Path) -> None:
    """Check that a folder holds a whole model and a tokenizer that belongs to it.

    Raises:
        BadInput: a part is missing, or the tokenizer knows more tokens than the model.
        Damaged: a weight file is truncated or missing.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: expected a model folder, there is no such folder")
    rows = vocabulary_size(folder)
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
