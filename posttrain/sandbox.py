"""Runs an untrusted Python program in bubblewrap: no network, nothing of the host writable.

Knows namespaces, limits and how to be certain that nothing outlives a call. Does not know why a
program is run: a verdict is a recipe's business (`verify` in its hooks).

A program sees a read-only interpreter with its standard library, an empty home and /tmp of its
own, and no one else's processes. It runs as a user without rights even when posttrain runs as
root, because the limit on processes does not bind root. Two programs with the same content give
the same `RunResult`, from the object's cache.

    Sandbox(SandboxLimits(seconds=2)).run("print(6 * 7)").stdout   # "42" and a line end
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import select
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import BadInput, StepFailed
from posttrain.hooks import RunResult
from posttrain.settings.engines import SandboxLimits

__all__ = ["Program", "Sandbox", "SandboxLimits", "available"]

NOBODY = "65534"
MAX_CACHED = 20_000
SECONDS_TO_DIE = 10.0
INSTALL = "install bubblewrap 0.8 or newer (apt-get install bubblewrap, dnf install bubblewrap)"
# The whole environment of a program. A fixed hash seed prints sets in one order on every run.
ENVIRONMENT = {
    "HOME": "/home",
    "LANG": "C.UTF-8",
    "LD_LIBRARY_PATH": "/python/lib",
    "PATH": "/python/bin",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
}


class Program(NamedTuple):
    """A program with what it reads; `seconds` None is the sandbox's own limit."""

    source: str
    stdin: str = ""
    seconds: float | None = None


class Sandbox:
    """Runs programs under one set of limits. May be shared by threads."""

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        """Check that programs can run here.

        Raises:
            BadInput: bubblewrap is missing, or the system lets it make no namespace.
        """
        self.limits = limits or SandboxLimits()
        self._python = _find_python(self.limits.python)
        self._known: dict[str, RunResult] = {}
        self._lock = threading.Lock()
        why_not = _why_not(self._python)
        if why_not:
            raise BadInput(why_not)

    def run(self, source: str, stdin: str = "", seconds: float | None = None) -> RunResult:
        """Run one program; a program that ran before in this object is not run again.

        Args:
            source: Python source text.
            stdin: what it finds on its standard input.
            seconds: CPU seconds in place of the limits' own.

        Raises:
            StepFailed: bubblewrap could not start the program (never the program's own fault).
        """
        program = Program(source, stdin, seconds)
        key = hashlib.sha256(repr(tuple(program)).encode(errors="surrogatepass")).hexdigest()
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = _run(program, self.limits, self._python)
            with self._lock:
                if len(self._known) >= MAX_CACHED:
                    del self._known[next(iter(self._known))]
                self._known[key] = known
        return known

    def run_many(self, programs: Sequence[Program], workers: int | None = None) -> list[RunResult]:
        """Run programs side by side, equal ones once; results in the programs' order.

        Args:
            programs: what to run.
            workers: programs at one time; None is the number of cores this process may use.
        """
        distinct = list(dict.fromkeys(programs))
        with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
            results = dict(zip(distinct, pool.map(lambda p: self.run(*p), distinct), strict=True))
        return [results[program] for program in programs]


def available() -> bool:
    """Whether programs can run in a sandbox on this machine."""
    return not _why_not(_find_python(None))


@functools.cache
def _why_not(python: Path) -> str:
    """Empty, or what is missing and what to do about it."""
    for tool in ("bwrap", "prlimit", *(["setpriv"] if os.geteuid() == 0 else [])):
        if shutil.which(tool) is None:
            hint = INSTALL if tool == "bwrap" else "install util-linux"
            return f"the sandbox needs {tool}, which is not on the PATH: {hint}"
    try:
        result = _run(Program("print('ready')", "", 10.0), SandboxLimits(), python)
    except StepFailed as error:
        return f"{error}; the sandbox needs user namespaces: {INSTALL}, or let this user make them"
    if result.stdout != "ready\n":
        return f"{python} does not run in the sandbox ({result}): name another sandbox.python"
    return ""


def _find_python(wanted: Path | None) -> Path:
    """The real path of an interpreter outside any virtual environment."""
    if wanted is None:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        wanted = Path(sys.base_prefix, "bin", version)
    if not wanted.is_file():
        raise BadInput(f"{wanted}: no such interpreter for the sandbox; name one as sandbox.python")
    return wanted.resolve()


def _run(program: Program, limits: SandboxLimits, python: Path) -> RunResult:
    seconds = program.seconds if program.seconds is not None else limits.seconds
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
                _command(python, limits, seconds, *inherited),
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
    code = 128 - code if code > 128 else code
    return RunResult(code, stdout, stderr, taken, "time" if code == -signal.SIGXCPU else "")


def _command(
    python: Path, limits: SandboxLimits, seconds: float, source: int, started: int, ended: int
) -> list[str]:
    """The whole command line; the last three arguments are file descriptors."""
    size = str(limits.file_mb << 20)
    lib = python.parent.parent / "lib"
    inner = [*_namespaces(), "--unshare-user", "--disable-userns", "--clearenv"]
    inner += [word for item in ENVIRONMENT.items() for word in ("--setenv", *item)]
    inner += ["--json-status-fd", str(ended), "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp", "/home"):
        inner += ["--size", size, "--tmpfs", folder]
    inner += [*_system_folders(), "--ro-bind", _tool("prlimit"), "/bin/prlimit"]
    run = ["--", "/bin/prlimit", *_limit_flags(limits, seconds), "--"]
    run += [f"/python/bin/{python.name}", "-s", "-P", "-B", "-X", "utf8", "/program.py"]
    program = ["--perms", "0444", "--ro-bind-data", str(source), "/program.py"]
    end = [*program, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/home", *run]
    if os.geteuid() != 0:
        info = ["--info-fd", str(started)]
        return [_tool("bwrap"), *info, *inner, *_bind_python(python, python, lib), *end]
    # Root opens folders that the unprivileged user cannot enter (an interpreter under /root, say),
    # shows them to an outer namespace and gives its rights up; the sandbox proper is made there.
    outer = [_tool("bwrap"), "--info-fd", str(started), "--unshare-pid", "--die-with-parent"]
    outer += ["--dev-bind", "/", "/", "--tmpfs", "/tmp", "--chdir", "/"]
    outer += _bind_python(python, python, lib, at="/tmp/python")
    outer += ["--", _tool("setpriv"), "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    seen = Path("/tmp/python")
    here = _bind_python(python, seen / "bin" / python.name, seen / "lib")
    return [*outer, _tool("bwrap"), *inner, *here, *end]


def _namespaces() -> list[str]:
    kinds = ("pid", "ipc", "uts", "net", "cgroup-try")
    return [*(f"--unshare-{kind}" for kind in kinds), "--die-with-parent", "--new-session"]


def _bind_python(python: Path, source: Path, lib: Path, at: str = "/python") -> list[str]:
    """Shows an interpreter and its library at another place, without its packages."""
    words = [w for folder in (at, f"{at}/bin") for w in ("--perms", "0755", "--dir", folder)]
    words += ["--ro-bind", str(source), f"{at}/bin/{python.name}"]
    words += ["--ro-bind", str(lib), f"{at}/lib"]
    packages = f"lib/{_version_folder(python)}/site-packages"
    if (python.parent.parent / packages).is_dir():
        words += ["--tmpfs", f"{at}/{packages}", "--remount-ro", f"{at}/{packages}"]
    return words


@functools.cache
def _version_folder(python: Path) -> str:
    """The name of the library's folder, such as `python3.12`."""
    found = sorted((python.parent.parent / "lib").glob("python3.*/os.py"))
    names = [path.parent.name for path in found]
    return python.name if python.name in names or not names else names[0]


@functools.cache
def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BadInput(f"the sandbox needs {name}, which is not on the PATH: {INSTALL}")
    return path


@functools.cache
def _system_folders() -> tuple[str, ...]:
    """Shared libraries and time zones: all that an interpreter needs of the system."""
    words: list[str] = []
    for name in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        else:
            words += ["--ro-bind-try", name, name]
    for name in ("/etc/ld.so.cache", "/usr/share/zoneinfo"):
        words += ["--ro-bind-try", name, name]
    return tuple(words)


def _limit_flags(limits: SandboxLimits, seconds: float) -> list[str]:
    cpu = math.ceil(seconds)
    return [
        # The soft limit kills with SIGXCPU, which tells it from other deaths.
        f"--cpu={cpu}:{cpu + 1}",
        f"--as={limits.memory_mb << 20}",
        f"--nproc={limits.processes}",
        f"--fsize={limits.file_mb << 20}",
        f"--nofile={limits.open_files}",
        "--core=0",
    ]


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
