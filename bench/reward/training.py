"""A training step of the reward model in each layout, beside TRL's own trainer on pairs.

One process, one thread, float32; the repetitions of all contestants take turns. Every contestant
makes a whole step: collating, forward, backward, optimizer. Times are those of the processor, so
that other work on the machine counts less.

    python -m bench.reward.training
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from bench.machine import command, write_result
from posttrain.models.chat import load_tokenizer
from posttrain.settings.resources import Resources
from posttrain.settings.training import RewardSettings
from posttrain.training.arguments import trainer_arguments
from posttrain.training.job import Job
from posttrain.training.rankings import read
from posttrain.training.reward import reward_trainer
from posttrain.training.running import own_process_state
from posttrain.training.tokens import ROWS, TokenRow, in_memory

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = ROOT / "rounds" / "tiny" / "base"
LAYOUTS = ("rows", "packed", "prefix", "auto")
NUM_LAYERS = 4
HIDDEN = 128


class Case(NamedTuple):
    """One shape of data; all its rankings are alike, so nothing is lost to padding."""

    prompt: int
    response: int
    responses: int
    batch: int


LONG = Case(1024, 128, 3, 1)
SHORT = tuple(
    Case(prompt, response, responses, 4)
    for prompt in (16, 64)
    for response in (32, 128)
    for responses in (2, 3)
)


def make_base(folder: Path) -> Path:
    """A random Llama with the tiny world's tokenizer."""
    tokenizer = load_tokenizer(TOKENIZER)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(case: Case) -> list[TokenRow]:
    """A batch of rankings of random tokens."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Any:
        return torch.randint(10, 250, (count,), generator=generator, dtype=torch.int32).numpy()

    lengths = torch.full((case.responses,), case.response, dtype=torch.int32).numpy()
    return [
        {
            "prompt_ids": draw(case.prompt),
            "response_ids": draw(case.responses * case.response),
            "response_lengths": lengths,
            "key": draw(1),
            ROWS: torch.tensor([place], dtype=torch.int32).numpy(),
        }
        for place in range(case.batch)
    ]


def ours(base: Path, work: Path, rows: Sequence[TokenRow], layout: str) -> RewardTrainer:
    """Our trainer with one layout."""
    settings = RewardSettings.model_validate(
        {"layout": layout, "max_length": 4096, "batch_size": len(rows)}
    )
    return reward_trainer(base, load_tokenizer(base), rows, settings, _job(work))


def theirs(base: Path, work: Path, rows: Sequence[TokenRow]) -> RewardTrainer:
    """TRL's trainer on all pairs of the rankings."""
    pairs = [
        {"chosen_ids": one.prompt + better, "rejected_ids": one.prompt + worse}
        for one in map(read, rows)
        for better, worse in combinations(one.responses, 2)
    ]
    settings = RewardSettings(max_length=4096, batch_size=len(pairs))
    lengths = [len(pair["chosen_ids"]) for pair in pairs]
    return RewardTrainer(
        model=str(base),
        args=RewardConfig(**trainer_arguments(settings, _job(work), lengths)),
        train_dataset=in_memory(pairs),
        processing_class=load_tokenizer(base),
    )


def _job(work: Path) -> Job:
    return Job(work, Resources(device="cpu"), "float32")


def stepper(trainer: Any) -> Callable[[], None]:
    """A function that makes one training step on all rows of a trainer."""
    rows = [dict(row) for row in trainer.train_dataset]
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()

    def step() -> None:
        batch = trainer.data_collator(rows)
        batch.pop(ROWS, None)
        num_items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        trainer.training_step(trainer.model, batch, num_items)
        trainer.optimizer.step()
        trainer.model.zero_grad()

    return step


def milliseconds(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Times of each contestant's steps; they take turns, the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn:
                times[name].append(1000 * (time.process_time() - start))
    return times


def measure(base: Path, work: Path, case: Case, repeats: int, trl: bool) -> dict[str, Any]:
    """Medians of one case, and how many times faster than rows (and TRL's pairs) each is."""
    rows = make_rows(case)
    trainers = {layout: ours(base, work, rows, layout) for layout in LAYOUTS}
    if trl:
        trainers["trl_pairs"] = theirs(base, work, rows)
    times = milliseconds({name: stepper(one) for name, one in trainers.items()}, repeats)
    medians = {name: statistics.median(own) for name, own in times.items()}
    result = {
        **case._asdict(),
        "auto_picked": trainers["auto"].data_collator.collate.layout,
        "milliseconds": {name: round(value, 2) for name, value in medians.items()},
        "times_faster_than_rows": {n: round(medians["rows"] / v, 2) for n, v in medians.items()},
    }
    if trl:
        pairs = medians["trl_pairs"]
        result["times_faster_than_trl"] = {n: round(pairs / v, 2) for n, v in medians.items()}
    print(result, flush=True)
    return result


def agreement(base: Path, work: Path) -> dict[str, Any]:
    """How far scores and gradients are from those of rows, on rankings of mixed lengths."""
    shapes = [Case(10 + 37 * i % 300, 5 + 53 * i % 90, 2 + i % 3, 1) for i in range(12)]
    rows = [row for shape in shapes for row in make_rows(shape)]
    found = {}
    for layout in ("rows", "packed", "prefix"):
        trainer: Any = ours(base, work, rows, layout)
        batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
        inputs = {
            k: v for k, v in batch.items() if k not in ("better", "worse", "num_tokens", ROWS)
        }
        trainer.compute_loss(trainer.model, batch).backward()
        gradients = [w.grad.flatten() for w in trainer.model.parameters() if w.grad is not None]
        with torch.no_grad():
            found[layout] = trainer.model(**inputs), torch.cat(gradients)
    scores, slopes = found.pop("rows")
    return {
        layout: {
            "largest_score_difference": (own_scores - scores).abs().max().item(),
            "relative_gradient_difference": ((own - slopes).norm() / slopes.norm()).item(),
        }
        for layout, (own_scores, own) in found.items()
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, own_process_state(_job(Path(temporary))):
        base = make_base(Path(temporary) / "base")
        work = Path(temporary) / "work"
        same = agreement(base, work)
        long = measure(base, work, LONG, options.repeats, trl=True)
        short = [measure(base, work, case, options.repeats, trl=False) for case in SHORT]
    result = {
        "command": command("reward.training"),
        "milliseconds_are": "of processor time, medians; equal to wall time on an idle machine",
        "model": f"{NUM_LAYERS} layers, hidden {HIDDEN}, float32, random",
        "differences_from_rows": same,
        "long": long,
        "short": short,
    }
    write_result(Path(__file__).parent / "training.json", result)


if __name__ == "__main__":
    main()
