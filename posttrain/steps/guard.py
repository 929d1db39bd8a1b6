"""Runs one command and makes sure that nothing of it outlives its owner.

Started by path with a bare interpreter: `python -I -S guard.py LIFE_FD COMMAND…`. The owner
holds the other end of the pipe LIFE_FD; when that end closes, however the owner died, or when the
command ends, every process below the guard is killed. Standard library only.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(life: int, command: list[str]) -> int:
    """Run the command until it ends or the owner is gone; its exit status (137 when killed)."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Orphans below us become our children, so that none can hide behind a dead parent.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    child = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    # Whoever is asked to end passes it on, and waits for what the command makes of it.
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    # Only the worker may hold these, or the owner would never see it end.
    os.close(0)
    os.close(1)
    while child.poll() is None:
        ready, _, _ = select.select([life, wake_read], [], [])
        if life in ready:
            break
        os.read(wake_read, 4096)
        _reap_orphans(child.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    _kill_descendants()
    status = child.wait()
    return 128 - status if status < 0 else status


def _reap_orphans(child: int) -> None:
    """Let go of ended processes that were handed to us; the command itself is waited for above."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == child:
                return
            os.waitpid(ended.si_pid, 0)


def _kill_descendants() -> None:
    """Kill children until there are none; killed parents hand us theirs."""
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name in field 2 may hold spaces; what follows it starts after the last ")".
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == os.getpid():
                    found.append(int(entry))
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
