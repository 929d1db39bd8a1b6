"""Which autocast precision a machine trains in.

Knows what a device supports and, on a CPU, measures it: bfloat16 is three times as fast on some
processors and slower on others, and nothing but a trial tells.

    choose_precision("cpu")
"""

import time
from typing import Literal

import torch

from posttrain.training.job import Precision

MATRIX_SIZE = 384
NUM_TRIALS = 7
MIN_GAIN = 1.3
"""How many times faster bfloat16 has to be on a CPU to be worth its rounding."""


def choose_precision(device: Literal["cpu", "cuda"]) -> Precision:
    """`bfloat16` where the device is (clearly) faster with it, else `float32`.

    On a CPU this takes well under half a second, on one thread.
    """
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        gain = _seconds(torch.float32) / _seconds(torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    return "bfloat16" if gain >= MIN_GAIN else "float32"


def _seconds(dtype: torch.dtype) -> float:
    """The fastest of some multiplications, as autocast does them: cast, then multiply."""
    left = torch.ones(MATRIX_SIZE, MATRIX_SIZE)
    right = torch.ones(MATRIX_SIZE, MATRIX_SIZE)
    trials = []
    for _ in range(NUM_TRIALS):
        start = time.perf_counter()
        torch.mm(left.to(dtype), right.to(dtype))
        trials.append(time.perf_counter() - start)
    return min(trials)
