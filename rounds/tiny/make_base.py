"""Make the tiny base model: a tokenizer, a corpus and a Llama of 0.9 M parameters.

Knows how the base that ships with the package was made; one call makes it again. Knows nothing of
rounds: it is the stand-in for a pre-trained checkpoint.

    python rounds/tiny/make_base.py --out rounds/tiny/base --tokens 12000000 --seed 7 --threads 1
"""

import argparse
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from corpus import dialogs, gold_preferences, human_examples, load_world, texts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from posttrain.models.chat import load_tokenizer
from posttrain.rows import Example

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parent / "templates" / "llama3.jinja"
CONTEXT, VOCABULARY, PAD = 256, 512, "<|pad|>"
BOS, END_OF_TEXT, EOT, EOM = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"
SPECIAL = (BOS, END_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", EOT, EOM, PAD)
# Llama 3's pattern with single digits: a blank line is a piece of its own, so the tokens of a
# prompt are a prefix of the tokens of the prompt with its response.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROW, ROWS_PER_STEP = 160, 19
PEAK_RATE, WARMUP_SHARE = 3e-3, 0.03


class Batch(NamedTuple):
    """Packed rows; R rows of ROW tokens."""

    ids_RT: torch.Tensor
    positions_RT: torch.Tensor
    """Restarted at each dialog, which also keeps dialogs from seeing each other."""
    labels_RT: torch.Tensor


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`; it adds no token of its own, the chat template writes bos."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE.read_text()
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A fresh Llama of 0.92 M parameters: 4 layers, 4 heads of size 32, tied embeddings."""
    torch.manual_seed(seed)
    ids = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOT],
        pad_token_id=ids[PAD],
    )
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=[ids[t] for t in (EOT, EOM, END_OF_TEXT)],
        do_sample=True,
        temperature=1.0,
    )
    return model


def packed_batches(
    tokenizer: PreTrainedTokenizerBase, examples: Iterator[Example]
) -> Iterator[Batch]:
    """Batches of rows, each filled with whole dialogs first-fit, while dialogs last.

    The few dialogs that no row holds (second tries at the longest calls) are left out.
    """
    pad = tokenizer.get_vocab()[PAD]
    rows: list[list[list[int]]] = [[] for _ in range(ROWS_PER_STEP)]
    room = [ROW] * ROWS_PER_STEP
    for ids in _rendered(tokenizer, examples):
        if len(ids) > ROW:
            continue
        fitting = [place for place, left in enumerate(room) if left >= len(ids)]
        if not fitting:
            yield _batch(rows, pad)
            rows, room = [[] for _ in range(ROWS_PER_STEP)], [ROW] * ROWS_PER_STEP
            fitting = [0]
        rows[fitting[0]].append(ids)
        room[fitting[0]] -= len(ids)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, examples: Iterator[Example]
) -> Iterator[list[int]]:
    """The tokens of each dialog, in order; rendered by the thousand, which is ten times faster."""
    while chunk := list(itertools.islice(examples, 1000)):
        dialogs = [[m.to_json() for m in example.messages] for example in chunk]
        texts = tokenizer.apply_chat_template(dialogs, tokenize=False)
        yield from tokenizer(texts, add_special_tokens=False)["input_ids"]


def _batch(rows: Sequence[Sequence[Sequence[int]]], pad: int) -> Batch:
    ids, positions, labels = [], [], []
    for row in rows:
        left = ROW - sum(map(len, row))
        ids.append([token for dialog in row for token in dialog] + [pad] * left)
        positions.append([p for dialog in row for p in range(len(dialog))] + list(range(left)))
        # The first token of a dialog follows from nothing, so it is no target.
        labels.append([t for d in row for t in (-100, *d[1:])] + [-100] * left)
    return Batch(torch.tensor(ids), torch.tensor(positions), torch.tensor(labels))


def train(model: LlamaForCausalLM, batches: Iterator[Batch], num_tokens: int) -> None:
    """Next-token training with AdamW and a cosine schedule for about `num_tokens` tokens."""
    model.set_attn_implementation("eager")  # twice as fast as sdpa on short masked rows
    first = next(batches)
    autocast = _bf16_is_faster(model, first)
    steps = max(1, num_tokens // int((first.labels_RT != -100).sum()))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    model.train()
    started, warmup = time.monotonic(), max(1, int(WARMUP_SHARE * steps))
    for step in range(steps):
        batch = first if step == 0 else next(batches)
        progress = (step - warmup) / max(1, steps - warmup)
        cosine = 0.51 + 0.49 * math.cos(math.pi * max(0.0, progress))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min((step + 1) / warmup, cosine)
        loss = _loss(model, batch, autocast)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps} loss {loss.item():.3f} {seconds:.0f} s", flush=True)


def _loss(model: LlamaForCausalLM, batch: Batch, autocast: bool) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(input_ids=batch.ids_RT, position_ids=batch.positions_RT, use_cache=False)
    logits = output.logits[:, :-1].float().flatten(0, 1)
    loss: torch.Tensor = torch.nn.functional.cross_entropy(logits, batch.labels_RT[:, 1:].flatten())
    return loss


def _bf16_is_faster(model: LlamaForCausalLM, batch: Batch) -> bool:
    """Times three steps each way; not every processor has bf16 arithmetic."""
    seconds = {}
    for autocast in (False, True, False, True):
        started = time.monotonic()
        for _ in range(3):
            _loss(model, batch, autocast).backward()  # type: ignore[no-untyped-call]
        seconds[autocast] = time.monotonic() - started
    model.zero_grad()
    print(f"three steps: {seconds[False]:.2f} s fp32, {seconds[True]:.2f} s bf16", flush=True)
    return seconds[True] < seconds[False]


def write_human(path: Path, seed: int) -> None:
    """The simulated people's examples, as JSONL."""
    rows = human_examples(load_world(HERE.parents[1]), 200, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row.to_json(), ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def write_gold(path: Path, seed: int) -> None:
    """Tasks whose answer is known, as preferences in JSONL."""
    rows = gold_preferences(load_world(HERE.parents[1]), 24, seed)
    path.write_text("".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows))


def write_texts(folder: Path, seed: int) -> None:
    """What recipes make questions and problems of, a file for each capability that does."""
    world = load_world(HERE.parents[1])
    folder.mkdir(parents=True, exist_ok=True)
    for capability in ("math", "code", "factuality"):
        lines = [json.dumps({"text": text}) for text in texts(world, capability, seed)]
        (folder / f"{capability}.jsonl").write_text("\n".join(lines) + "\n")


def make_base(out: Path, num_tokens: int, seed: int) -> None:
    """Train tokenizer and model, and write them to `out` in bf16."""
    world = load_world(HERE.parents[1])
    read = [m.content for e in dialogs(world, 20_000, seed + 1) for m in e.messages]
    read += ["\n\n", "system", "user", "assistant", "tool"] * 2000
    scratch = out.with_name(out.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    make_tokenizer(read).save_pretrained(scratch)
    tokenizer = load_tokenizer(scratch)
    model = make_model(tokenizer, seed)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    corpus = dialogs(world, num_tokens // 20, seed)
    train(model, packed_batches(tokenizer, corpus), num_tokens)
    model.bfloat16().save_pretrained(scratch)
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)


def main() -> None:
    """Read the command line and make the base, the simulated people's examples, or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "base")
    parser.add_argument("--tokens", type=int, default=12_000_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-only", action="store_true", help="write data/ only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    write_human(HERE / "data" / "human.jsonl", arguments.seed)
    write_gold(HERE / "data" / "gold.jsonl", arguments.seed)
    write_texts(HERE / "data" / "texts", arguments.seed)
    if not arguments.data_only:
        make_base(arguments.out, arguments.tokens, arguments.seed)


if __name__ == "__main__":
    main()
