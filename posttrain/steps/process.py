"""Starts workers under a guard, gives them jobs and tells how each ended.

Knows pipes and processes; what a job computes is its stage's affair.

    with WorkerPool(shared=True, threads=1) as pool:
        pool.run(job, on_progress)
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from posttrain.errors import Preempted, StepFailed, from_name
from posttrain.steps import guard
from posttrain.steps.job import Job

_LOG_TAIL_LINES = 15


class Worker:
    """One worker process, its guard, and the pipe whose end means we are gone."""

    def __init__(self, threads: int, one_device: bool) -> None:
        life_read, self._life = os.pipe()
        # -P: no file of the folder we stand in may shadow a module.
        command = [sys.executable, "-P", "-m", "posttrain.steps.worker"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(life_read), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[life_read],
            start_new_session=True,
            env=_environment(threads, one_device),
        )
        os.close(life_read)

    def run(self, job: Job, on_progress: Callable[[int, int], None]) -> None:
        """Run one job to its end.

        Raises:
            PosttrainError: what the step raised, or StepFailed with the end of its log.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(job.model_dump_json() + "\n")
            stdin.flush()
            for line in stdout:
                answer = json.loads(line)
                if answer["event"] == "done":
                    return
                if answer["event"] == "error":
                    message = str(answer["message"])
                    named = message.startswith(job.address)
                    raise from_name(
                        answer["kind"], message if named else f"{job.address}: {message}"
                    )
                on_progress(answer["done"], answer["total"])
        except BrokenPipeError:
            pass
        status = self._process.wait()
        raise StepFailed(_last_words(job, status))

    def ask_to_end(self) -> None:
        """Let it save what it has done, and end by itself."""
        self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End the worker and everything below it."""
        os.close(self._life)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            # What was written to a dead worker cannot be flushed any more.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class WorkerPool:
    """Workers for the steps of one command: kept for the next step, or a fresh one for each.

    Steps may run side by side, from a thread each; a worker does one at a time.
    """

    def __init__(self, shared: bool, threads: int, grace_seconds: float = 0.0) -> None:
        """Starts nothing yet.

        Args:
            shared: whether a worker is kept for the next step.
            threads: of each worker.
            grace_seconds: what workers have to save their work when the machine is wanted back.
        """
        self._shared, self._threads, self._grace = shared, threads, grace_seconds
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: list[Worker] = []
        self._closed = False

    def run(self, job: Job, on_progress: Callable[[int, int], None]) -> None:
        """Run a job in a worker that is free, or in a new one.

        Raises:
            PosttrainError: what the step raised; its worker is ended.
        """
        worker, whole = self._take(job), False
        try:
            worker.run(job, on_progress)
            whole = True
        finally:
            self._give_back(worker, keep=whole and self._shared)

    def close(self) -> None:
        """End every worker, also those at work."""
        with self._lock:
            self._closed = True
            workers = [*self._idle, *self._busy]
            self._idle.clear()
            self._busy.clear()
        for worker in workers:
            worker.close()

    def _end_softly(self) -> None:
        """Ask the workers at work to end, and give them time for it."""
        with self._lock:
            self._closed = True
            for worker in self._busy:
                worker.ask_to_end()
        end = time.monotonic() + self._grace
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)

    def _take(self, job: Job) -> Worker:
        with self._lock:
            if self._closed:
                raise StepFailed(f"{job.address}: the command is ending")
            # The trainers of one process would split a batch over every GPU they see.
            one_device = job.trains and not self._shared and job.resources["processes"] == 1
            worker = self._idle.pop() if self._idle else Worker(self._threads, one_device)
            self._busy.append(worker)
            return worker

    def _give_back(self, worker: Worker, keep: bool) -> None:
        with self._lock:
            if worker not in self._busy:
                return
            self._busy.remove(worker)
            if keep:
                self._idle.append(worker)
                return
        worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, Preempted):
                self._end_softly()
        finally:
            self.close()


def has_accelerator() -> bool:
    """Whether the machine shows a GPU, told without loading torch."""
    return any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/kfd", "/dev/accel0"))


def _environment(threads: int, one_device: bool) -> dict[str, str]:
    """A worker never calls out, and its threads do not spin against each other."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {
        # Batches of many shapes would fill oneDNN's cache of 1,024 compiled kernels: 2.0 GiB in
        # place of 1.2 for a tiny reward model, and slower.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        **os.environ,
        **({"CUDA_VISIBLE_DEVICES": visible} if one_device else {}),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
    }


def _last_words(job: Job, status: int) -> str:
    ending = f"killed by signal {status - 128}" if status > 128 else f"ended with status {status}"
    if status - 128 == signal.SIGKILL:
        ending += (
            ", as systems do whose memory runs out (lower resources.micro_batch_size or "
            "resources.parallel if nobody else did it),"
        )
    log = Path(job.log)
    tail = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:] if log.is_file() else []
    lines = [
        f"{job.address}: its process was {ending} before it was done; what it had finished is "
        f"kept, run the same command to continue (log: {log})",
        *(f"  | {line}" for line in tail),
    ]
    return "\n".join(lines)
