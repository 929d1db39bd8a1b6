"""A random Llama of about 30 k parameters with a trained byte-level tokenizer, rows to train it
on, and the DPO loss written plainly, for tests.

Knows transformers and tokenizers; knows nothing of stages.

    make_model(tmp_path / "base")
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.rows import Example, Message, Preference
from posttrain.settings.training import DpoSettings

TEMPLATE = Path(__file__).parent.parent / "rounds" / "templates" / "llama3.jinja"
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|pad|>",
)
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = ("red", "blue", "green", "gold", "small", "large", "round", "flat")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Llama-3's split, so that a prompt is a prefix of its dialog."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [" ".join(WORDS) + " good bad what colour is it", "assistant user system\n\n"], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE.read_text(),
    )


def with_other_template(model: Path, folder: Path) -> Path:
    """A copy of a model whose chat template puts a blank at the end of each dialog."""
    shutil.copytree(model, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    return folder


def make_model(folder: Path, seed: int = 0, hidden: int = 32, context: int = 256) -> Path:
    """Write a random model and its tokenizer to `folder`."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def turn(role: str, content: str) -> Message:
    """One message."""
    return Message.model_validate({"role": role, "content": content})


def examples(count: int) -> list[Example]:
    """Dialogs whose answers are a function of their questions; lengths vary."""
    rows = []
    for i in range(count):
        word, other = WORDS[i % len(WORDS)], WORDS[(i * 5 + 3) % len(WORDS)]
        question = f"what colour is {word} {other} {i % 7}"
        answer = f"it is {word}" + f" {other}" * (i % 5)
        messages = (turn("user", question), turn("assistant", answer))
        rows.append(Example(id=f"e{i}", messages=messages, capability="colour"))
    return rows


def preferences(count: int) -> list[Preference]:
    """Pairs in which the good answer says `good`; every third row has an edited answer too."""
    rows = []
    for i in range(count):
        word = WORDS[i % len(WORDS)]
        answers = {
            "chosen": f"good {word}" + " it" * (i % 4),
            "rejected": f"bad {word}" + " is" * (i % 3),
        }
        if i % 3 == 0:
            answers["edited"] = f"good good {word}"
        sides = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
        prompt = [{"role": "user", "content": f"what colour is {word} {i}"}]
        rows.append(
            Preference.model_validate(
                {"id": f"p{i}", "prompt": prompt, "strength": "better", **sides}
            )
        )
    return rows


def log_probs(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Log-probability of each token but the first, one dialog at a time, without padding."""
    tokens = torch.tensor(ids).long()
    logits = model(tokens.unsqueeze(0)).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, tokens[1:, None])[:, 0]


def reference_dpo_loss(
    policy: torch.nn.Module, frozen: torch.nn.Module, rows: list[Any], settings: DpoSettings
) -> torch.Tensor:
    """The paper's loss, written plainly."""
    losses = []
    for row in rows:
        scores, nll = [], torch.tensor(0.0, dtype=torch.float64)
        for side in ("chosen", "rejected"):
            mask = torch.tensor(row[f"{side}_dpo"][1:])
            now, then = (log_probs(m, row[f"{side}_ids"]) for m in (policy, frozen))
            scores.append(((now - then) * mask).sum())
            if side == "chosen":
                nll = -now[torch.tensor(row["chosen_target"][1:]).bool()].mean()
        margin = settings.beta * (scores[0] - scores[1])
        losses.append(-torch.nn.functional.logsigmoid(margin) + settings.nll_weight * nll)
    return torch.stack(losses).mean()
