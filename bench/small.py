"""A workspace with a cut-down tiny plan, for measurements and tests that run whole rounds.

The same steps and files as the tiny plan, with fewer prompts and one thread.

    workspace = small_workspace(Path("/tmp/small"), rounds=2, num_prompts=24)
"""

import shutil
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FOLDERS = ("rounds", "recipes", "data_quality")


def small_workspace(folder: Path, rounds: int, num_prompts: int) -> Path:
    """Copy the three workspace folders and cut rounds/tiny.yaml down to `rounds/small.yaml`."""
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.yaml.tmp")
        )
    plan = yaml.safe_load((folder / "rounds" / "tiny.yaml").read_text())
    plan["rounds"] = plan["rounds"][:rounds]
    for data in [plan["bootstrap"], *plan["rounds"]]:
        for sources in (data.get("prompts", ()), data.get("tasks", ())):
            _share(2 * num_prompts, sources)
    _share(6 * num_prompts, plan["evaluation"]["sources"])
    plan["evaluation"]["num_samples"] = 2
    plan["sampling"]["shard_size"] = 8
    for recipe in plan["recipes"].values():
        recipe["k"] = 4
    for stage in ("reward", "sft", "dpo"):
        plan[stage] |= {"epochs": 2, "batch_size": 8}
    plan["gate"] = {"tolerance": 1.0}
    # Small data trips limits that are meant for real amounts.
    plan["pipeline"]["dedup"]["max_loss"] = 1.0
    plan["resources"] = resources()
    (folder / "rounds" / "small.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    (folder / "rounds" / "tiny.yaml").unlink()
    (folder / "rounds" / "llama3.yaml").unlink()
    return folder


def _share(total: int, sources: list[dict[str, Any]]) -> None:
    """Ask for about `total` prompts, equally many of each source."""
    for source in sources:
        source["num"] = max(1, total // len(sources))


def resources() -> dict[str, Any]:
    """One thread, fixed precision, and checkpoints close enough for a kill to fall between."""
    return {"threads": 1, "precision": "float32", "checkpoint_every": 5, "reject_share": 0.05}
