"""Kills a run at random moments and checks that nothing is lost, half-written or left behind.

A two-round run of the tiny plan is started, killed after a random time (the controller alone, the
step alone, or both) and started again, until it ends; and that again until there were enough kills.
After each kill every process that the run ever started must be gone within five seconds, and every
published folder must be whole; at the end every weight file must have the sha256 of an
uninterrupted run.

    python -m bench.kill --kills 24
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.machine import write_result
from bench.small import small_workspace

Target = Literal["controller", "step", "both"]
TARGETS: tuple[Target, ...] = ("controller", "step", "both")
SECONDS_TO_DIE = 5.0


@dataclass
class Watched:
    """A running command and every process that was ever seen below it."""

    process: "subprocess.Popen[bytes]"
    seen: dict[int, str] = field(default_factory=dict)
    """Process id → its start time, so that a reused id is not mistaken."""
    workers: set[int] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking for new processes."""
        self._stop.set()
        self._thread.join()

    def alive(self) -> list[int]:
        """Seen processes that still run."""
        now = processes()
        return [p for p, start in self.seen.items() if p in now and now[p].start == start]

    def _look(self) -> None:
        while not self._stop.is_set():
            now = processes()
            below = {self.process.pid}
            grown = True
            while grown:
                new = {p for p, one in now.items() if one.parent in below and p not in below}
                grown = bool(new)
                below |= new
            for pid in below & now.keys():
                self.seen[pid] = now[pid].start
                if "posttrain.steps.worker" in now[pid].command and "guard.py" not in (
                    now[pid].command
                ):
                    self.workers.add(pid)
            time.sleep(0.02)


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    parent: int
    start: str
    command: str


def processes() -> dict[int, Process]:
    """Every process that is no zombie."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(entry)] = Process(int(fields[1]), fields[19], command.decode())
    return found


def start(workspace: Path) -> Watched:
    """Start `posttrain run` in a workspace."""
    log = (workspace / "run.log").open("ab")
    command = [sys.executable, "-m", "posttrain", "run", "--plan", "small"]
    process = subprocess.Popen(command, cwd=workspace, stdout=log, stderr=subprocess.STDOUT)
    log.close()
    return Watched(process)


def kill(watched: Watched, target: Target) -> None:
    """SIGKILL the controller, the step's process, or both at once."""
    workers = [p for p in watched.alive() if p in watched.workers]
    victims = {
        "controller": [watched.process.pid],
        "step": workers or [watched.process.pid],
        "both": [*workers, watched.process.pid],
    }[target]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def seconds_until_gone(watched: Watched) -> float:
    """How long the killed run's processes live on.

    Raises:
        AssertionError: one is still there after SECONDS_TO_DIE.
    """
    begun = time.monotonic()
    watched.process.wait(timeout=SECONDS_TO_DIE)
    while left := watched.alive():
        waited = time.monotonic() - begun
        assert waited < SECONDS_TO_DIE, f"{len(left)} processes outlive the kill: {left}"
        time.sleep(0.01)
    watched.stop()
    return time.monotonic() - begun


def check_whole(workspace: Path) -> int:
    """Check that every published step is whole; their number.

    Raises:
        AssertionError: a folder without `.partial` lacks its manifest, or a file of it.
    """
    steps = [p for p in (workspace / "runs").glob("*/round-*/*") if p.suffix != ".partial"]
    for step in steps:
        manifest = json.loads((step / "manifest.json").read_text())
        for name, known in manifest["files"].items():
            digest = hashlib.sha256((step / name).read_bytes()).hexdigest()
            assert digest == known["sha256"], f"{step.name}/{name} differs from its manifest"
    return len(steps)


def weights(workspace: Path) -> dict[str, str]:
    """sha256 of every published weight file."""
    return {
        str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((workspace / "runs").glob("*/round-*/*/model/*.safetensors"))
    }


def run_to_end(workspace: Path) -> float:
    """An uninterrupted run; its seconds.

    Raises:
        AssertionError: it failed.
    """
    begun = time.monotonic()
    watched = start(workspace)
    status = watched.process.wait()
    watched.stop()
    assert status == 0, (workspace / "run.log").read_text()[-3000:]
    return time.monotonic() - begun


def run_with_kills(
    workspace: Path, rng: random.Random, most: int, life: tuple[float, float]
) -> list[dict[str, object]]:
    """Start, kill and start again until the run ends by itself; what each kill met."""
    kills: list[dict[str, object]] = []
    while True:
        watched = start(workspace)
        wanted = rng.uniform(*life) if len(kills) < most else 3600.0
        try:
            status = watched.process.wait(timeout=wanted)
        except subprocess.TimeoutExpired:
            target = TARGETS[len(kills) % len(TARGETS)]
            kill(watched, target)
            gone = seconds_until_gone(watched)
            published = check_whole(workspace)
            seen = len(watched.seen)
            kills.append(
                {
                    "target": target,
                    "after_seconds": round(wanted, 2),
                    "gone_after_seconds": round(gone, 3),
                    "processes_seen": seen,
                    "steps_published": published,
                }
            )
            continue
        watched.stop()
        assert status == 0, (workspace / "run.log").read_text()[-3000:]
        return kills


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        reference = small_workspace(base / "reference", options.rounds, options.prompts)
        seconds = run_to_end(reference)
        expected = weights(reference)
        kills: list[dict[str, object]] = []
        runs = 0
        while len(kills) < options.kills:
            runs += 1
            workspace = small_workspace(base / f"run-{runs}", options.rounds, options.prompts)
            life = (2.0, max(8.0, 0.45 * seconds))
            kills += run_with_kills(workspace, rng, options.kills - len(kills), life)
            found = weights(workspace)
            assert found == expected, [k for k in expected if found.get(k) != expected[k]]
            print(f"run {runs}: {len(kills)} kills so far, {len(found)} weight files equal")
    result = {
        "command": "python -m bench.kill " + " ".join(sys.argv[1:]),
        "seed": options.seed,
        "uninterrupted_seconds": round(seconds, 1),
        "runs": runs,
        "kills": len(kills),
        "weight_files_equal": len(expected),
        "longest_life_after_kill_seconds": max(float(str(k["gone_after_seconds"])) for k in kills),
        "each_kill": kills,
    }
    write_result(Path(__file__).parent / "results" / "kill.json", result)


if __name__ == "__main__":
    main()
