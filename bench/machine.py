"""What a figure was measured on: processor, cores, memory, versions.

Versions come from the running environment.

    describe()   # {"processor": "AMD EPYC …", "cores": 2, …}
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from posttrain.steps.manifest import git_commit, versions


def describe() -> dict[str, Any]:
    """The machine, the versions and the commit that a figure depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.system(),
        "versions": versions(),
        "commit": (git_commit(Path(__file__).parent) or "unknown")[:7],
    }


def write_result(out: Path, result: dict[str, Any]) -> None:
    """Print a result and write it beside the others."""
    text = json.dumps({**result, "machine": describe()}, indent=1, ensure_ascii=False)
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n")


def command(module: str, *programs: str) -> str:
    """How a measurement was called; where the programs that these options name lie is left out."""
    words = list(sys.argv[1:])
    for place, word in enumerate(words[:-1]):
        if word in programs:
            words[place + 1] = "PYTHON"
    return " ".join([f"python -m bench.{module}", *words])
