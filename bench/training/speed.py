"""Tokens a second of SFT and DPO beside TRL's own trainers, on dialogs of log-normal lengths.

One epoch over the same rows, in the same order, with the same settings, by `Trainer.train`: data
loading, steps and logging. Tokens are those of the dialogs, without padding. Contestants take
turns; times are those of the processor, so that other work on the machine counts less. TRL's
trainers get token ids as well: SFTTrainer as it is (each batch padded) and with `packing=True`,
DPOTrainer as it is, with its losses sigmoid and sft. "Attention as ours" is the same with our
choice of attention, where it differs from the default.

    python -m bench.training.speed --repeats 5
"""

import argparse
import itertools
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bench.machine import command, write_result
from bench.reward.training import make_base
from posttrain.likelihood import IGNORED
from posttrain.models.chat import load_tokenizer
from posttrain.settings.resources import Resources
from posttrain.settings.training import DpoSettings, SftSettings
from posttrain.training.arguments import trainer_arguments
from posttrain.training.dpo import dpo_trainer
from posttrain.training.job import Job, Precision
from posttrain.training.packing import PackedBatches
from posttrain.training.running import own_process_state
from posttrain.training.sft import sft_trainer
from posttrain.training.tokens import ROWS, TokenRow, in_memory

MAX_LENGTH = 1024
MEAN, SIGMA = math.log(120), 1.0
EQUAL = 128
"""Tokens of dialogs where nothing is lost to padding."""
PROMPT = 0.4
"""Share of a dialog that is prompt."""
Run = Callable[[], float]


class Quiet:
    """Keeps TRL from counting operations, calling out and writing model cards."""

    def _send_telemetry(self) -> None:
        """Nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


class TheirSft(Quiet, SFTTrainer):
    """TRL's, as it is."""


class TheirDpo(Quiet, DPOTrainer):
    """TRL's, given token ids in place of texts."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def draw_lengths(count: int, draw: random.Random, equal: bool) -> list[int]:
    """Tokens of dialogs: log-normal, between 16 and the longest that is taken; or all equal."""
    if equal:
        return [EQUAL] * count
    drawn = (round(draw.lognormvariate(MEAN, SIGMA)) for _ in range(count))
    return [min(MAX_LENGTH, max(16, length)) for length in drawn]


def dialogs(lengths: list[int], draw: random.Random) -> list[list[int]]:
    """Random tokens; the first one stands for the beginning of a text."""
    return [[1, *(draw.randrange(10, 250) for _ in range(n - 1))] for n in lengths]


def sft_rows(count: int, equal: bool = False) -> list[TokenRow]:
    """Dialogs, of which the end is a target."""
    draw = random.Random(0)
    rows = []
    for place, ids in enumerate(dialogs(draw_lengths(count, draw, equal), draw)):
        start = round(PROMPT * len(ids))
        labels = [IGNORED] * start + ids[start:]
        made = {"input_ids": ids, "labels": labels, ROWS: [place]}
        rows.append({name: np.asarray(values, np.int32) for name, values in made.items()})
    return rows


def dpo_rows(count: int, equal: bool = False) -> list[TokenRow]:
    """Pairs; each side has a length of its own."""
    draw = random.Random(0)
    rows = []
    for place in range(count):
        better, worse = dialogs(draw_lengths(2, draw, equal), draw)
        start = round(PROMPT * min(len(better), len(worse)))
        worse[:start] = better[:start]
        row: dict[str, list[int]] = {ROWS: [place]}
        for side, ids in (("chosen", better), ("rejected", worse)):
            target = [0] * start + [1] * (len(ids) - start)
            row |= {f"{side}_ids": ids, f"{side}_target": target, f"{side}_dpo": target}
        rows.append({name: np.asarray(values, np.int32) for name, values in row.items()})
    return rows


def timed(trainer: Any) -> float:
    """Processor seconds of one epoch."""
    start = time.process_time()
    trainer.train()
    return time.process_time() - start


def sft_contestants(base: Path, job: Job, rows: list[TokenRow]) -> dict[str, Run]:
    """What trains one epoch on the same dialogs."""
    tokenizer = load_tokenizer(base)
    settings = SftSettings(batch_size=32, max_length=MAX_LENGTH, learning_rate=1e-4)
    shared = trainer_arguments(settings, job, [len(row["input_ids"]) for row in rows])
    plain = {name: [list(map(int, row[name])) for row in rows] for name in ("input_ids", "labels")}

    def ours() -> float:
        collate = PackedBatches(int(tokenizer.pad_token_id))
        return timed(sft_trainer(base, tokenizer, rows, collate, settings, job))

    def theirs(eager: bool = False, packing: bool = False) -> float:
        arguments = {**shared, "model_init_kwargs": attention(shared, eager)}
        if packing:
            tokens = sum(len(row["input_ids"]) for row in rows)
            per_step = max(1, round(32 * tokens / len(rows) / MAX_LENGTH))
            arguments |= {
                "packing": True,
                "max_length": MAX_LENGTH,
                "per_device_train_batch_size": per_step,
            }
        else:
            arguments["dataset_kwargs"] = {"skip_prepare_dataset": True}
        return timed(
            TheirSft(
                model=str(base),
                args=SFTConfig(**arguments),
                train_dataset=Dataset.from_dict(plain),
                processing_class=tokenizer,
            )
        )

    found: dict[str, Run] = {
        "ours": ours,
        "trl_padded": theirs,
        "trl_packed": lambda: theirs(packing=True),
    }
    if "attn_implementation" in shared["model_init_kwargs"]:
        found["trl_padded_attention_as_ours"] = lambda: theirs(eager=True)
    return found


def dpo_contestants(base: Path, job: Job, rows: list[TokenRow]) -> dict[str, Run]:
    """What trains one epoch on the same pairs; the reference is computed before."""
    tokenizer = load_tokenizer(base)
    settings = DpoSettings(
        batch_size=16, max_length=MAX_LENGTH, learning_rate=1e-5, mask_format_tokens=False
    )
    shared = trainer_arguments(settings, job, [len(row["chosen_ids"]) for row in rows])

    def ours() -> float:
        return timed(dpo_trainer(base, tokenizer, rows, settings, job))

    def theirs(eager: bool = False) -> float:
        pairs = [
            {"prompt_ids": row["chosen_ids"][: _start(row)].tolist()}
            | {side: row[side][_start(row) :].tolist() for side in ("chosen_ids", "rejected_ids")}
            for row in rows
        ]
        arguments = {**shared, "model_init_kwargs": attention(shared, eager)}
        return timed(
            TheirDpo(
                model=str(base),
                args=DPOConfig(
                    **arguments,
                    beta=settings.beta,
                    loss_type=["sigmoid", "sft"],
                    loss_weights=[1.0, settings.nll_weight],
                    precompute_ref_log_probs=True,
                ),
                train_dataset=in_memory(pairs),
                processing_class=tokenizer,
            )
        )

    found: dict[str, Run] = {"ours": ours, "trl_padded": theirs}
    if "attn_implementation" in shared["model_init_kwargs"]:
        found["trl_padded_attention_as_ours"] = lambda: theirs(eager=True)
    return found


def attention(shared: dict[str, Any], eager: bool) -> dict[str, Any]:
    """How the model is loaded, with transformers' default attention or with our choice."""
    loading = dict(shared["model_init_kwargs"])
    if not eager:
        loading.pop("attn_implementation", None)
    return loading


def _start(row: TokenRow) -> int:
    return int(np.flatnonzero(row["chosen_target"])[0])


def measure(runs: dict[str, Run], tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of each, and how many times those of TRL's padded default; the first turn is
    not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            took = run()
            if turn:
                seconds[name].append(took)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    found = {
        "tokens": tokens,
        "tokens_per_second": {name: round(tokens / value) for name, value in medians.items()},
        "times_trl_padded": {n: round(medians["trl_padded"] / v, 2) for n, v in medians.items()},
        "seconds": {name: [round(one, 2) for one in own] for name, own in seconds.items()},
    }
    print(found, flush=True)
    return found


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dialogs", type=int, default=256)
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision, equal in itertools.product(precisions, (False, True)):
        examples = sft_rows(options.dialogs, equal)
        pairs = dpo_rows(options.dialogs // 2, equal)
        of_sft = sum(len(row["input_ids"]) for row in examples)
        of_dpo = sum(len(row[f"{side}_ids"]) for row in pairs for side in ("chosen", "rejected"))
        name = f"{precision}, {'equal' if equal else 'log-normal'} lengths"
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary) / "work"
            job = Job(work, Resources(device="cpu", checkpoint_every=10**6), precision)
            with own_process_state(job):
                base = make_base(Path(temporary) / "base")
                sft, dpo = sft_contestants(base, job, examples), dpo_contestants(base, job, pairs)
                found[f"SFT, {name}"] = measure(sft, of_sft, options.repeats)
                found[f"DPO, {name}"] = measure(dpo, of_dpo, options.repeats)
    result = {
        "command": command("training.speed"),
        "model": "4 layers, hidden 128, vocabulary of 512, random, one thread",
        "lengths": f"log-normal, median {round(math.exp(MEAN))}, sigma {SIGMA}, 16 to {MAX_LENGTH}",
        "seconds_are": "of processor time, of one epoch",
        **found,
    }
    write_result(Path(__file__).parent / "speed.json", result)


if __name__ == "__main__":
    main()
