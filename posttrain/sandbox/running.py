"""Runs one program and makes certain that nothing of it is left.

Knows pipes, deadlines and process ids. The command line is `posttrain.sandbox.bubblewrap`'s, or in
the weaker mode that of a plain process under limits.
"""

import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import StepFailed
from posttrain.hooks import RunResult
from posttrain.sandbox.bubblewrap import ENVIRONMENT, NOBODY, command, limit_flags, tool
from posttrain.sandbox.languages import LANGUAGES, spoken, spoken_outside
from posttrain.settings.engines import SandboxLimits

SECONDS_TO_DIE = 10.0


class Program(NamedTuple):
    """A program with what it reads; `seconds` None is the sandbox's own limit."""

    source: str
    stdin: str = ""
    seconds: float | None = None
    language: str = "python"
    check: bool = False
    """Only whether its syntax is right; nothing is run."""


def run(program: Program, limits: SandboxLimits, python: Path) -> RunResult:
    """Run one program, or check its syntax, under the mode and the limits that are set.

    Raises:
        BadInput: an unknown language.
        StepFailed: bubblewrap could not start the program (never the program's own fault).
    """
    seconds = program.seconds if program.seconds is not None else limits.seconds
    if limits.mode == "limits_only":
        return _run_outside(program, limits, seconds, python)
    how = spoken(program.language, program.check, python)
    if how is None:
        return RunResult(127, "", f"no interpreter of {program.language}", 0.0, "missing")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        source_fd = stack.enter_context(_memory_file(program.source))
        stdin_fd = stack.enter_context(_memory_file(program.stdin))
        started_pipe, ended_pipe = os.pipe(), os.pipe()
        for read_end in (started_pipe[0], ended_pipe[0]):
            stack.callback(os.close, read_end)
        inherited = (source_fd, started_pipe[1], ended_pipe[1])
        try:
            process = subprocess.Popen(
                command(python, how, limits, seconds, *inherited),
                stdin=stdin_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=inherited,
                env={},
            )
        finally:
            os.close(started_pipe[1])
            os.close(ended_pipe[1])
        first_pid = _first_pid(started_pipe[0])
        try:
            deadline = started + seconds * limits.wall_factor
            limit, stdout, stderr = _collect(process, deadline, limits.output_kb * 1024)
        finally:
            process.kill()
            _wait_until_dead(process, first_pid)
        ended = os.read(ended_pipe[0], 4096)
    taken = time.monotonic() - started
    if limit:
        return RunResult(-signal.SIGKILL, stdout, stderr, taken, limit)
    # A program can print whatever it likes, so only bubblewrap's own word on its end counts.
    if b"exit-code" not in ended:
        raise StepFailed(f"bubblewrap could not start a program: {stderr.strip()[-500:]}")
    code = process.returncode
    # bubblewrap reports death by signal s as 128 + s, as a shell does.
    code = 128 - code if 128 < code < 128 + signal.NSIG else code
    return RunResult(code, stdout, stderr, taken, "time" if code == -signal.SIGXCPU else "")


def _run_outside(
    program: Program, limits: SandboxLimits, seconds: float, python: Path
) -> RunResult:
    """The weaker mode: a process of its own session under limits, in a folder of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="posttrain-program-") as folder:
        suffix = LANGUAGES[program.language].suffix if program.language in LANGUAGES else ""
        file = Path(folder, f"program{suffix}")
        file.write_text(program.source, errors="replace")
        words = spoken_outside(program.language, program.check, python, str(file))
        if words is None:
            return RunResult(127, "", f"no interpreter of {program.language}", 0.0, "missing")
        limited = [tool("prlimit"), *limit_flags(limits, seconds, reserves=False), "--"]
        if os.geteuid() == 0:
            os.chown(folder, int(NOBODY), int(NOBODY))
            limited += [tool("setpriv"), "--reuid", NOBODY, "--regid", NOBODY]
            limited += ["--clear-groups", "--no-new-privs"]
        environment = {**ENVIRONMENT, "HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin"}
        del environment["LD_LIBRARY_PATH"]
        with _memory_file(program.stdin) as stdin_fd:
            process = subprocess.Popen(
                [*limited, *words],
                stdin=stdin_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        deadline = started + seconds * limits.wall_factor
        try:
            limit, stdout, stderr = _collect(process, deadline, limits.output_kb * 1024)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    taken = time.monotonic() - started
    code = -signal.SIGKILL if limit else process.returncode
    limit = limit or ("time" if code == -signal.SIGXCPU else "")
    return RunResult(code, stdout, stderr, taken, limit)


@contextlib.contextmanager
def _memory_file(text: str) -> Iterator[int]:
    """A file descriptor to read text from, with no path that anyone else could open."""
    fd = os.memfd_create("posttrain")
    try:
        # Lone surrogates of a model's output must not stop the step.
        with open(fd, "wb", closefd=False) as file:
            file.write(text.encode(errors="replace"))
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _collect(
    process: subprocess.Popen[bytes], deadline: float, max_bytes: int
) -> tuple[str, str, str]:
    """Read both outputs until the program ends or meets a limit: (limit, stdout, stderr)."""
    assert process.stdout is not None and process.stderr is not None
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    limit = ""
    with selectors.DefaultSelector() as selector, process.stdout, process.stderr:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and not limit:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                stream = process.stdout if key.fd == process.stdout.fileno() else process.stderr
                block = os.read(key.fd, 65536)
                kept[stream] += block
                if not block:
                    selector.unregister(stream)
                elif len(kept[stream]) > max_bytes:
                    limit = "output"
            if not ready:
                limit = "time"
        if not limit:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                limit = "time"
    stdout, stderr = (bytes(kept[s][:max_bytes]).decode(errors="replace") for s in kept)
    return limit, stdout, stderr


def _first_pid(info_fd: int) -> int | None:
    """The process whose death ends every other of the sandbox; None when it never started."""
    info = b""
    while not info.rstrip().endswith(b"}"):
        block = os.read(info_fd, 4096)
        if not block:
            return None
        info += block
    return int(json.loads(info)["child-pid"])


def _wait_until_dead(process: subprocess.Popen[bytes], first_pid: int | None) -> None:
    """Return when no process of the sandbox is left.

    The kernel ends all processes of a pid namespace before its first one counts as dead.
    """
    process.wait()
    if first_pid is None:
        return
    try:
        pidfd = os.pidfd_open(first_pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(SECONDS_TO_DIE * 1000):
            raise StepFailed(f"process {first_pid} of the sandbox is still alive after SIGKILL")
    finally:
        os.close(pidfd)
    # Where posttrain is the system's first process, the dead are ours to bury.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(first_pid, os.WNOHANG)
