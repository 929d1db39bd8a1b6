"""The process of one machine in a launched training: becomes accelerate's launcher.

Started by hand or by srun, whose SLURM_NODEID says which machine this is.

    python -m posttrain.training.node work/launch/order.json
"""

import os
import sys
from pathlib import Path

from posttrain.training.order import ACCELERATE, Order


def main(path: str) -> None:
    """Replace this process by the launcher of the machine's processes."""
    order = Order.model_validate_json(Path(path).read_text())
    rank = os.environ.get("SLURM_NODEID", "0")
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-P",
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(order.folder / ACCELERATE),
            "--machine_rank",
            rank,
            "-m",
            "posttrain.training.rank",
            path,
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1])
