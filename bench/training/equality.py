"""How far our trainings are from what they should equal: losses, micro-batches, processes.

The DPO loss beside TRL's (masks and likelihood off) and beside the paper's formula in float64 (both
on), on dialogs of many lengths; weights after training with another micro-batch, or with two
processes. A random tiny model in float32; weights are those of the last checkpoint, not rounded.

    python -m bench.training.equality
"""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from bench.machine import command, write_result
from posttrain.models.chat import load_tokenizer
from posttrain.models.folders import load_causal
from posttrain.rows import Example, Preference
from posttrain.settings.resources import Resources
from posttrain.settings.training import DpoSettings, RewardSettings, SftSettings
from posttrain.training.dpo import dpo_trainer, train_dpo
from posttrain.training.job import Job
from posttrain.training.launching import run_training
from posttrain.training.reward import train_reward
from posttrain.training.running import own_process_state
from posttrain.training.sft import train_sft
from posttrain.training.tokens import TokenRow, dpo_tokens
from tests.tiny_model import TEMPLATE, WORDS, make_model, reference_dpo_loss, turn

COMMON = {"batch_size": 16, "learning_rate": 1e-3, "max_length": 256, "epochs": 2}
STEPS = 12


def pairs(count: int) -> list[Preference]:
    """Preferences whose responses have 1 to 20 words."""
    draw = random.Random(0)

    def words() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 20)))

    return [
        Preference(
            id=f"p{n}",
            prompt=(turn("user", f"say {words()}"),),
            chosen=(turn("assistant", f"good {words()}"),),
            rejected=(turn("assistant", f"bad {words()}"),),
            strength="better",
        )
        for n in range(count)
    ]


def dialogs(count: int) -> list[Example]:
    """The chosen side of the same."""
    return [
        Example(id=row.id, messages=(*row.prompt, *row.chosen), capability="c")
        for row in pairs(count)
    ]


def loss_gaps(base: Path, work: Path) -> dict[str, float]:
    """Largest difference of a batch's loss over some batches, from TRL's and from the formula."""
    tokenizer = load_tokenizer(base, TEMPLATE)
    plain = DpoSettings(mask_format_tokens=False, nll_weight=0.0, **COMMON)
    papers = DpoSettings(**COMMON)
    gaps: dict[str, list[float]] = {"TRL's, masks and likelihood off": [], "float64 formula": []}
    for number in range(8):
        rows = pairs(64)[8 * number : 8 * number + 8]
        for settings, name in zip((plain, papers), gaps, strict=True):
            kept, _ = dpo_tokens(tokenizer, rows, 256, settings.mask_format_tokens)
            trainer: Any = dpo_trainer(base, tokenizer, kept, settings, job(work))
            perturb(trainer.model, number)
            batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
            ours = trainer.compute_loss(trainer.model, batch).item()
            if settings is plain:
                expected = trainer._compute_loss(trainer.model, theirs(kept, batch), False)
            else:
                frozen, moved = (load_causal(base, torch.float64) for _ in range(2))
                moved.load_state_dict(trainer.model.state_dict())
                expected = reference_dpo_loss(moved, frozen, kept, settings)
            gaps[name].append(abs(ours - expected.item()))
    return {name: max(own) for name, own in gaps.items()}


def theirs(kept: list[TokenRow], batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same pairs as TRL's loss takes them: padded."""
    sides = [(row, side) for side in ("chosen", "rejected") for row in kept]

    def padded(name: str) -> torch.Tensor:
        return pad_sequence([torch.tensor(r[f"{s}_{name}"]).long() for r, s in sides], True)

    return {
        "input_ids": padded("ids"),
        "completion_mask": padded("target"),
        "attention_mask": pad_sequence([torch.ones(len(r[f"{s}_ids"])) for r, s in sides], True),
        "ref_chosen_logps": batch["reference_chosen"],
        "ref_rejected_logps": batch["reference_rejected"],
    }


def perturb(model: torch.nn.Module, seed: int) -> None:
    """Move a model away from its reference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator) * 0.02)


def weight_gap(base: Path, folder: Path, kind: str, one: Job, other: Job) -> float:
    """Largest difference of any weight after the same training in two ways."""
    found = []
    for number, own in enumerate((one, other)):
        out = folder / f"{kind}-{number}"
        if kind == "sft":
            sft = SftSettings.model_validate(COMMON)
            run_training(train_sft, "sft", base, dialogs(96), out, sft, own)
        elif kind == "dpo":
            dpo = DpoSettings.model_validate(COMMON)
            run_training(train_dpo, "dpo", base, pairs(96), out, dpo, own)
        else:
            reward = RewardSettings.model_validate(COMMON)
            run_training(train_reward, "reward", base, pairs(96), out, reward, own)
        found.append(load_file(own.work / f"checkpoint-{STEPS}" / "model.safetensors"))
    return max((found[0][name] - found[1][name]).abs().max().item() for name in found[0])


def job(work: Path, **resources: int) -> Job:
    """A training on the CPU that keeps its last weights."""
    circumstances = Resources(device="cpu", checkpoint_every=STEPS, **resources)
    return Job(work, circumstances, "float32", TEMPLATE)


def main() -> None:
    """Measure, print and write the result."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        base = make_model(root / "base")
        with own_process_state(job(root / "w")):
            found["largest difference of the DPO loss from"] = loss_gaps(base, root / "w")
        ways = {"micro-batch 1 and 8": ({"micro_batch_size": 1}, {"micro_batch_size": 8})}
        ways["one and two processes"] = ({"processes": 1}, {"processes": 2})
        for number, (name, settings) in enumerate(ways.items()):
            jobs = [
                [job(root / f"{number}-{kind}-{side}", **one) for side, one in enumerate(settings)]
                for kind in ("sft", "dpo", "reward")
            ]
            found[f"largest difference of a weight, {name}"] = {
                kind: weight_gap(base, root / str(number), kind, *own)
                for kind, own in zip(("sft", "dpo", "reward"), jobs, strict=True)
            }
    result = {
        "command": command("training.equality"),
        "training": f"{STEPS} steps of 16 rows, learning rate 1e-3, AdamW",
        **found,
    }
    write_result(Path(__file__).parent / "equality.json", result)


if __name__ == "__main__":
    main()
