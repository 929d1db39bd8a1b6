"""Which device a machine computes on.

Knows what torch can see, and no model.

    pick_device("auto")
"""

from typing import Literal

import torch

from posttrain.errors import BadInput

Device = Literal["auto", "cpu", "cuda"]


def pick_device(wanted: Device) -> Literal["cpu", "cuda"]:
    """The device torch is to use; `auto` takes CUDA where there is one.

    Raises:
        BadInput: CUDA is wanted and torch sees none.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput(
            "resources.device is cuda, but torch sees no CUDA device; install a driver and a torch "
            "built for it, or set resources.device to auto or cpu"
        )
    return wanted
