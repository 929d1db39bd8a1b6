"""Stage functions that end in every way a step can; found by the worker through PYTHONPATH."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from posttrain.errors import BadInput, Preempted
from posttrain.settings.base import Settings
from posttrain.steps.ending import patient
from posttrain.steps.output import Inputs, Output


class Text(Settings):
    text: str = ""
    threads: int = 1
    chosen: str = ""


def writes(inputs: Inputs, settings: Text, out: Output) -> None:
    out.write("rows", [{"id": "1", "text": settings.text}])
    out.drop("2", "not wanted: really", why="test")
    out.part("writing", 2, 1)
    out.progress(1, 1)
    out.metrics(length=len(settings.text))


def takes_memory(inputs: Inputs, settings: Text, out: Output) -> None:
    block = bytearray(300 << 20)
    block[::4096] = b"x" * len(block[::4096])
    out.metrics(length=len(block))


def saves_a_model(inputs: Inputs, settings: Text, out: Output) -> None:
    (out.path / "model").mkdir()
    (out.path / "model" / "model.safetensors").write_text(settings.text)


def chooses(inputs: Inputs, settings: Text, out: Output) -> None:
    policy = {"step": settings.chosen, "fingerprint": settings.chosen}
    out.write_json("policy", {**policy, "best": policy})


def dies(inputs: Inputs, settings: Text, out: Output) -> None:
    out.write("rows", [{"id": "1"}])
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def raises(inputs: Inputs, settings: Text, out: Output) -> None:
    raise ZeroDivisionError("a bug in a stage")


def refuses(inputs: Inputs, settings: Text, out: Output) -> None:
    raise BadInput("the data is wrong")


def fills_the_disk(inputs: Inputs, settings: Text, out: Output) -> None:
    out.write("rows", [{"id": "1"}])
    with Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)


def resumes(inputs: Inputs, settings: Text, out: Output) -> None:
    """Dies once in the middle, and goes on from what it had."""
    shard = out.path / "work" / "first"
    if not shard.exists():
        shard.parent.mkdir(parents=True)
        shard.write_text("done")
        os.kill(os.getpid(), signal.SIGKILL)
    out.write("rows", [{"id": "1", "first": shard.read_text()}])


def leaves_a_daemon(inputs: Inputs, settings: Text, out: Output) -> None:
    program = "import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    Path(settings.text).write_text(str(child.pid))
    time.sleep(600)


def meets(inputs: Inputs, settings: Text, out: Output) -> None:
    """Ends only once a step beside it has begun as well; `text` is "folder:me:other"."""
    folder, me, other = settings.text.split(":")
    (Path(folder) / me).touch()
    deadline = time.monotonic() + 30
    while not (Path(folder) / other).exists():
        if time.monotonic() > deadline:
            raise BadInput(f"{other} did not begin beside {me}")
        time.sleep(0.02)
    out.write("rows", [{"id": me}])


def leaves_zombies(inputs: Inputs, settings: Text, out: Output) -> None:
    """Starts programs whose children outlive them, and counts who of those is left behind."""
    for _ in range(5):
        subprocess.run(["sh", "-c", "sleep 0.1 &"], check=True)
    time.sleep(1)
    parent = os.getppid()
    states = [
        entry.read_text().rpartition(")")[2].split()[:2]
        for entry in Path("/proc").glob("[0-9]*/stat")
    ]
    Path(settings.text).write_text(str(states.count(["Z", str(parent)])))


def saves_when_asked(inputs: Inputs, settings: Text, out: Output) -> None:
    saved = out.path / "work" / "saved"
    if saved.exists():
        out.write("rows", [{"id": "saved"}])
        return
    saved.parent.mkdir()
    with patient() as asked:
        Path(settings.text).touch()
        while not asked():
            time.sleep(0.01)
        saved.touch()
    raise Preempted("saved at step 3")


def never_ends(inputs: Inputs, settings: Text, out: Output) -> None:
    with patient():
        Path(settings.text).touch()
        time.sleep(600)


def may_end_anywhere(inputs: Inputs, settings: Text, out: Output) -> None:
    Path(settings.text).touch()
    time.sleep(600)
