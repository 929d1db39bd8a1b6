"""One writer per run: a file lock with its holder's host, process and heartbeat.

The kernel frees the lock with its holder; the heartbeat serves other hosts.

    with run_lock(Path("runs/tiny")):
        ...
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from posttrain.errors import Busy
from posttrain.tables import write_json

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Hold the run's lock; it is free the moment its process is gone, however it went.

    A lock of another host (on a shared file system, where kernel locks may not reach) counts as
    held while its heartbeat is younger than STALE_SECONDS.

    Raises:
        Busy: naming who holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(root / ".lock"), root / ".holder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(f"{root}: another process works on this run ({_holder(holder)})") from None
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(holder, stop), daemon=True)
    try:
        _refuse_other_host(root, holder)
        _write(holder)
        beat.start()
        yield
    finally:
        stop.set()
        if beat.is_alive():
            beat.join()
            holder.unlink(missing_ok=True)
        lock.release()


def _refuse_other_host(root: Path, holder: Path) -> None:
    if not holder.is_file():
        return
    try:
        known = json.loads(holder.read_text())
        host, age = str(known["host"]), time.time() - float(known["heartbeat"])
    except (ValueError, KeyError):
        return
    if host != socket.gethostname() and age < STALE_SECONDS:
        raise Busy(f"{root}: another machine works on this run ({_holder(holder)})")


def _write(holder: Path) -> None:
    beat = {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time()}
    write_json(holder, beat)


def _beat(holder: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        _write(holder)


def _holder(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text())
        age = time.time() - float(known["heartbeat"])
        return f"host {known['host']}, process {known['pid']}, last seen {age:.0f} s ago"
    except (OSError, ValueError, KeyError):
        return "its holder has not signed yet"
