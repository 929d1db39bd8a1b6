"""Which autocast precision a machine trains in.

Knows what a device supports and, on a CPU, measures it: bfloat16 is three times as fast on some
processors and slower on others, and nothing but a trial tells.

    choose_precision("cpu")
"""

import time

import torch
from torch.nn.functional import linear, silu

from posttrain.models.devices import Device, pick_device
from posttrain.training.job import Precision

NUM_TOKENS, HIDDEN, INNER = 1024, 128, 384
"""Rather small, as models that are trained on a CPU are: casting costs more than it gains there."""
NUM_TRIALS = 7
MIN_GAIN = 1.3
"""How many times faster bfloat16 has to be on a CPU to be worth its rounding."""


def choose_precision(device: Device) -> Precision:
    """`bfloat16` where the device is (clearly) faster with it, else `float32`.

    On a CPU this takes well under half a second, on one thread.

    Raises:
        BadInput: CUDA is wanted and torch sees none.
    """
    if pick_device(device) == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        gain = _seconds(autocast=False) / _seconds(autocast=True)
    finally:
        torch.set_num_threads(threads)
    return "bfloat16" if gain >= MIN_GAIN else "float32"


def _seconds(autocast: bool) -> float:
    """The fastest of some passes, forward and backward, through a feed-forward block."""
    tokens = torch.ones(NUM_TOKENS, HIDDEN)
    up = torch.full((INNER, HIDDEN), 0.01, requires_grad=True)
    down = torch.full((HIDDEN, INNER), 0.01, requires_grad=True)
    trials = []
    for _ in range(NUM_TRIALS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = linear(silu(linear(tokens, up)), down)
        torch.autograd.backward(result.float().sum())
        trials.append(time.perf_counter() - start)
    return min(trials)
