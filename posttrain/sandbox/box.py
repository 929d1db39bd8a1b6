"""Runs an untrusted program in bubblewrap: no network, nothing of the host writable.

Knows namespaces, limits and how to be certain that nothing outlives a call. Does not know why a
program is run: a verdict is a recipe's business (`verify` in its hooks).

A program sees a read-only interpreter with its standard library, an empty home and /tmp of its
own, and no one else's processes. It runs as a user without rights even when posttrain runs as
root, because the limit on processes does not bind root. Two programs with the same content give
the same `RunResult`, from the object's cache.

    Sandbox(SandboxLimits(seconds=2)).run("print(6 * 7)").stdout   # "42" and a line end
"""

import functools
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from posttrain.errors import BadInput, StepFailed
from posttrain.hooks import RunResult
from posttrain.sandbox.bubblewrap import INSTALL
from posttrain.sandbox.running import Program, run
from posttrain.settings.engines import SandboxLimits

MAX_CACHED = 20_000
WEAK = "or say resources.sandbox.mode=limits_only, which protects far less"


class Sandbox:
    """Runs programs under one set of limits. May be shared by threads."""

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        """Check that programs can run here.

        Raises:
            BadInput: bubblewrap is missing, or the system lets it make no namespace.
        """
        self.limits = limits or SandboxLimits()
        self._python = find_python(self.limits.python)
        self._known: dict[str, RunResult] = {}
        self._lock = threading.Lock()
        why_not = _why_not(self._python, self.limits.mode)
        if why_not:
            raise BadInput(why_not)

    def run(
        self,
        source: str,
        stdin: str = "",
        seconds: float | None = None,
        language: str = "python",
        check: bool = False,
    ) -> RunResult:
        """Run one program; a program that ran before in this object is not run again.

        Args:
            source: source text.
            stdin: what it finds on its standard input.
            seconds: CPU seconds in place of the limits' own.
            language: one of `LANGUAGES`; where its interpreter is not there, the result's limit is
                `missing`.
            check: whether to look at the syntax alone.

        Raises:
            BadInput: an unknown language.
            StepFailed: bubblewrap could not start the program (never the program's own fault).
        """
        program = Program(source, stdin, seconds, language, check)
        key = hashlib.sha256(repr(tuple(program)).encode(errors="surrogatepass")).hexdigest()
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = run(program, self.limits, self._python)
            with self._lock:
                if len(self._known) >= MAX_CACHED:
                    del self._known[next(iter(self._known))]
                self._known[key] = known
        return known

    def run_many(self, programs: Sequence[Program], workers: int | None = None) -> list[RunResult]:
        """Run programs side by side, equal ones once; results in the programs' order.

        Args:
            programs: what to run.
            workers: programs at one time; None is twice the number of cores this process may use,
                since a program that starts or ends waits for the kernel.
        """
        distinct = list(dict.fromkeys(programs))
        with ThreadPoolExecutor(workers or 2 * len(os.sched_getaffinity(0))) as pool:
            results = dict(zip(distinct, pool.map(lambda p: self.run(*p), distinct), strict=True))
        return [results[program] for program in programs]


def available() -> bool:
    """Whether programs can run in a sandbox on this machine."""
    return not _why_not(find_python(None), "bubblewrap")


@functools.cache
def _why_not(python: Path, mode: Literal["bubblewrap", "limits_only"]) -> str:
    """Empty, or what is missing and what to do about it."""
    tools = ["bwrap"] if mode == "bubblewrap" else []
    for tool in (*tools, "prlimit", *(["setpriv"] if os.geteuid() == 0 else [])):
        if shutil.which(tool) is None:
            hint = INSTALL if tool == "bwrap" else "install util-linux"
            return f"the sandbox needs {tool}, which is not on the PATH: {hint}, {WEAK}"
    try:
        result = run(Program("print('ready')", "", 10.0), SandboxLimits(mode=mode), python)
    except StepFailed as error:
        needed = f"user namespaces: {INSTALL}, let this user make them"
        return f"{error}; the sandbox needs {needed}, {WEAK}"
    if result.stdout != "ready\n":
        return f"{python} does not run in the sandbox ({result}): name another sandbox.python"
    return ""


def find_python(wanted: Path | None) -> Path:
    """The real path of an interpreter outside any virtual environment."""
    if wanted is None:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        wanted = Path(sys.base_prefix, "bin", version)
    if not wanted.is_file():
        raise BadInput(f"{wanted}: no such interpreter for the sandbox; name one as sandbox.python")
    return wanted.resolve()
