"""The process in which steps run: reads jobs from its standard input, publishes, answers.

One JSON object a line each way. It imports a step's module when a job names it, so that the
controller stays light. It lives under `posttrain.steps.guard`.

    python -m posttrain.steps.worker
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, get_type_hints

from posttrain.errors import PosttrainError, Preempted
from posttrain.settings.base import parse
from posttrain.settings.resources import Resources
from posttrain.steps import ending
from posttrain.steps.job import Job
from posttrain.steps.manifest import (
    Manifest,
    forget_peak_memory,
    git_commit,
    list_files,
    peak_memory_mib,
    publish,
    versions,
)
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_json
from posttrain.workspace import Workspace

_PROGRESS_SECONDS = 0.2


def main() -> None:
    """Serve jobs until standard input ends, or SIGTERM comes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    signal.signal(signal.SIGTERM, ending.handle)
    with contextlib.suppress(Preempted):
        _serve(answers)


def _serve(answers: TextIO) -> None:
    for line in sys.stdin:
        job = Job.model_validate_json(line)
        _redirect(Path(job.log))
        started = time.monotonic()
        try:
            run_job(job, answers, started)
        except PosttrainError as error:
            _answer(answers, "error", kind=type(error).__name__, message=str(error))
        except OSError as error:
            traceback.print_exc()
            message = f"{job.address}: {error.strerror}: {error.filename or 'disk'}"
            _answer(answers, "error", kind="StepFailed", message=message)
        else:
            _give_memory_back()
            _answer(answers, "done")


def run_job(job: Job, answers: TextIO, started: float) -> None:
    """Run one step in its partial folder and publish it."""
    module, _, name = job.function.partition(":")
    function: Callable[[Inputs, Any, Output], None] = getattr(importlib.import_module(module), name)
    kind = get_type_hints(function)["settings"]
    settings = parse(kind, job.settings, job.address)
    partial, final = Path(job.partial), Path(job.final)
    forget_peak_memory()
    inputs = Inputs(
        paths={k: Path(v) for k, v in job.paths.items()},
        workspace=Workspace(Path(job.workspace)),
        resources=Resources.model_validate(job.resources),
        machine=Path(job.machine),
    )
    out = Output(partial, _reporter(answers))
    function(inputs, settings, out)
    books = out.close()
    publish(
        partial,
        final,
        Manifest(
            address=job.address,
            fingerprint=job.fingerprint,
            payload=job.payload,
            inputs=job.inputs,
            files=list_files(partial),
            seconds=round(time.monotonic() - started, 2),
            peak_memory_mib=peak_memory_mib(),
            circumstances=_circumstances(job),
            versions=versions(),
            git_commit=git_commit(Path(job.workspace)),
            argv=job.argv,
            host=socket.gethostname(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            **books,
        ),
    )


def _give_memory_back() -> None:
    """A worker lives for many steps, and glibc keeps what a step has freed to itself."""
    gc.collect()
    # Another C library has no such function, and no need of it.
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _circumstances(job: Job) -> dict[str, Any]:
    """What does not define the step, but may decide its last bits."""
    machine = Path(job.machine)
    decided = read_json(machine) if machine.is_file() else {}
    return {**job.resources, **decided}


def _redirect(log: Path) -> None:
    """Send everything that libraries print to the step's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _reporter(answers: TextIO) -> Callable[[int, int], None]:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS or done == total:
            last = now
            _answer(answers, "progress", done=done, total=total)

    return report


def _answer(answers: TextIO, event: str, **fields: object) -> None:
    answers.write(json.dumps({"event": event, **fields}) + "\n")


if __name__ == "__main__":
    main()
