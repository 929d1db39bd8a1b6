"""The command line of a program in bubblewrap: what it sees, and what it may use.

Knows namespaces, folders and limits. Starts nothing.
"""

import functools
import math
import os
import shutil
from pathlib import Path

from posttrain.errors import BadInput
from posttrain.sandbox.languages import Spoken
from posttrain.settings.engines import SandboxLimits

NOBODY = "65534"
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


def command(
    python: Path,
    spoken: Spoken,
    limits: SandboxLimits,
    seconds: float,
    source: int,
    started: int,
    ended: int,
) -> list[str]:
    """The whole command line; the last three arguments are file descriptors."""
    size = str(limits.file_mb << 20)
    lib = python.parent.parent / "lib"
    inner = [*_namespaces(), "--unshare-user", "--disable-userns", "--clearenv"]
    inner += [word for item in ENVIRONMENT.items() for word in ("--setenv", *item)]
    inner += ["--json-status-fd", str(ended), "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp", "/home"):
        inner += ["--size", size, "--tmpfs", folder]
    inner += [*_system_folders(), "--ro-bind", tool("prlimit"), "/bin/prlimit"]
    inner += spoken.bound
    run = ["--", "/bin/prlimit", *limit_flags(limits, seconds, spoken.reserves), "--"]
    run += spoken.command
    program = ["--perms", "0444", "--ro-bind-data", str(source), spoken.program]
    end = [*program, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/home", *run]
    if os.geteuid() != 0:
        info = ["--info-fd", str(started)]
        return [tool("bwrap"), *info, *inner, *_bind_python(python, python, lib), *end]
    # Root opens folders that the unprivileged user cannot enter (an interpreter under /root, say),
    # shows them to an outer namespace and gives its rights up; the sandbox proper is made there.
    outer = [tool("bwrap"), "--info-fd", str(started), "--unshare-pid", "--die-with-parent"]
    outer += ["--dev-bind", "/", "/", "--tmpfs", "/tmp", "--chdir", "/"]
    outer += _bind_python(python, python, lib, at="/tmp/python")
    outer += ["--", tool("setpriv"), "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    seen = Path("/tmp/python")
    here = _bind_python(python, seen / "bin" / python.name, seen / "lib")
    return [*outer, tool("bwrap"), *inner, *here, *end]


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
def tool(name: str) -> str:
    """The path of a program that the sandbox is made with.

    Raises:
        BadInput: it is not on the PATH.
    """
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


def limit_flags(limits: SandboxLimits, seconds: float, reserves: bool) -> list[str]:
    """Arguments of prlimit.

    A program that reserves address space is held to its data instead.
    """
    cpu = math.ceil(seconds)
    memory = "data" if reserves else "as"
    return [
        # The soft limit kills with SIGXCPU, which tells it from other deaths.
        f"--cpu={cpu}:{cpu + 1}",
        f"--{memory}={limits.memory_mb << 20}",
        f"--nproc={limits.processes}",
        f"--fsize={limits.file_mb << 20}",
        f"--nofile={limits.open_files}",
        "--core=0",
    ]
