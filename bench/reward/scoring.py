"""What scoring costs beside a bare forward pass over the same tokens, and how far scores move.

A bare pass gets the tokens rendered, sorted by length and in batches of the scorer's size: once as
transformers is commonly called, with an attention mask, once without. One thread. The ways take
turns on short parts of the dialogs, so that a busy machine slows all alike; what is told is the
median over turns of a way's time beside the bare pass of the same turn.

    python -m bench.reward.scoring
"""

import argparse
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig
from transformers.models.llama import LlamaForSequenceClassification

from bench.machine import write_result
from posttrain.models.chat import dialog_ids, load_tokenizer
from posttrain.models.files import context_length
from posttrain.models.folders import no_progress_bars
from posttrain.rows import Message
from posttrain.scoring import Dialog, RewardScorer, batches

ROOT = Path(__file__).parent.parent.parent
BASE = ROOT / "rounds" / "tiny" / "base"
BATCH_TOKENS = 2048
NUM_ALONE = 64
NUM_PARTS = 10
SEED = 0
BARE = "bare forward"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogs", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        tiny = _tiny(Path(temporary) / "tiny")
        result["tiny base"] = _measure(tiny, options.dialogs, options.repeats)
        wider = _wider(Path(temporary) / "wider")
        result["wider model"] = _measure(wider, options.dialogs // 8, options.repeats)
    write_result(
        ROOT / "bench" / "reward" / "scoring.json",
        {
            "command": f"python -m bench.reward.scoring --dialogs {options.dialogs} "
            f"--repeats {options.repeats}",
            "seed": SEED,
            "threads": 1,
            "dtype": "float32",
            "batch_tokens": BATCH_TOKENS,
            **result,
        },
    )


def _measure(folder: Path, num: int, repeats: int) -> dict[str, Any]:
    tokenizer = load_tokenizer(folder)
    limit = context_length(folder)
    dialogs = [
        one for one in _dialogs(2 * num) if len(dialog_ids(tokenizer, one.messages)) <= limit
    ]
    dialogs = dialogs[:num]
    rows = [dialog_ids(tokenizer, one.messages) for one in dialogs]
    names = [one.id for one in dialogs]
    with no_progress_bars():
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    scorer = RewardScorer(folder, None, batch_tokens=BATCH_TOKENS)
    ways: dict[str, Callable[[slice], Sequence[float | None]]] = {
        BARE: lambda part: _bare(model, rows[part], masked=True),
        "bare forward, no mask": lambda part: _bare(model, rows[part], masked=False),
        "scorer on tokens": lambda part: scorer.score_tokens(rows[part], names[part]),
        "scorer on dialogs": lambda part: scorer.score(dialogs[part]),
    }
    size = len(rows) // NUM_PARTS
    parts = [slice(start, start + size) for start in range(0, size * NUM_PARTS, size)]
    wall, work = _turns(ways, parts, repeats)
    bare, scores = (ways[name](slice(None)) for name in (BARE, "scorer on dialogs"))
    alone = [scorer.score([dialog])[0] for dialog in dialogs[:NUM_ALONE]]
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "dialogs": len(rows),
        "tokens": sum(map(len, rows)),
        "longest and shortest dialog": [max(map(len, rows)), min(map(len, rows))],
        "turns": len(wall[BARE]),
        "dialogs a turn": size,
        "median processor ms a dialog": {
            name: round(1000 * statistics.median(some) / size, 3) for name, some in work.items()
        },
        "wall time beside the bare forward": _beside(wall),
        "processor time beside the bare forward": _beside(work),
        "largest difference of a score": {
            "from the bare forward": _largest(scores, bare),
            "from the dialog alone": _largest(alone, scores[:NUM_ALONE]),
        },
    }


def _turns(
    ways: Mapping[str, Callable[[slice], object]], parts: Sequence[slice], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of each way in each turn, the order changing from turn to turn."""
    wall: dict[str, list[float]] = defaultdict(list)
    work: dict[str, list[float]] = defaultdict(list)
    rng = random.Random(SEED)
    for way in ways.values():
        way(parts[0])
    for part in [*parts] * repeats:
        for name in rng.sample(list(ways), len(ways)):
            begun, worked = time.perf_counter(), time.process_time()
            ways[name](part)
            wall[name].append(time.perf_counter() - begun)
            work[name].append(time.process_time() - worked)
    return dict(wall), dict(work)


def _beside(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of a way's time over the bare pass's in the same turn."""
    result = {}
    for name, some in sorted(times.items()):
        ratios = [one / bare for one, bare in zip(some, times[BARE], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        result[name] = {"median": round(median, 3), "quartiles": [round(low, 3), round(high, 3)]}
    return result


def _bare(model: torch.nn.Module, rows: Sequence[Sequence[int]], masked: bool) -> list[float]:
    """Nothing but the model: right-padded batches, sorted by length."""
    pad = model.config.pad_token_id
    scores = [0.0] * len(rows)
    for part in batches([len(row) for row in rows], BATCH_TOKENS):
        width = max(len(rows[i]) for i in part)
        ids = torch.tensor([[*rows[i], *[pad] * (width - len(rows[i]))] for i in part])
        lengths = torch.tensor([len(rows[i]) for i in part])
        mask = (torch.arange(width) < lengths[:, None]).long() if masked else None
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for i, value in zip(part, logits[:, 0].tolist(), strict=True):
            scores[i] = value
    return scores


def _largest(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    pairs = zip(first, second, strict=True)
    return max(abs(a - b) for a, b in pairs if a is not None and b is not None)


def _dialogs(num: int) -> list[Dialog]:
    """Dialogs of mixed lengths; what they say does not matter here."""
    rng = random.Random(SEED)
    words = (
        "the a of to and 12 34 7 red blue lemon stone reverse sort letters word answer is".split()
    )

    def turn(role: str, longest: int) -> Message:
        text = " ".join(rng.choices(words, k=rng.randint(1, longest)))
        return Message.model_validate({"role": role, "content": text})

    return [
        Dialog((turn("user", 30), turn("assistant", rng.choice((5, 20, 40, 60)))), id=f"d{i}")
        for i in range(num)
    ]


def _tiny(folder: Path) -> Path:
    """The tiny base with a random head."""
    torch.manual_seed(SEED)
    with no_progress_bars():
        model = AutoModelForSequenceClassification.from_pretrained(
            BASE, num_labels=1, dtype=torch.float32
        )
    return _saved(model, folder)


def _wider(folder: Path) -> Path:
    """A random model of some five times the size, with the tiny base's tokenizer."""
    torch.manual_seed(SEED)
    config = LlamaConfig.from_pretrained(
        BASE, hidden_size=256, intermediate_size=768, num_hidden_layers=6, head_dim=64
    )
    config.num_labels = 1
    return _saved(LlamaForSequenceClassification(config), folder)


def _saved(model: Any, folder: Path) -> Path:
    tokenizer = load_tokenizer(BASE)
    model.config.pad_token_id = tokenizer.pad_token_id
    with no_progress_bars():
        model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
