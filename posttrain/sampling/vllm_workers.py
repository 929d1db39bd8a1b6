"""vLLM's worker processes with one model: how they start, answer and end together.

Knows the options that every use of vLLM shares. What the workers are asked, `vllm_engine` (text)
and `vllm_pooling` (scores) say.

    workers = VllmWorkers(settings, model_options(folder, settings))
    workers.ask([{"do": "reload", "model": "runs/my/round-2/policy"}] * len(workers), 900)
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import BadInput, PosttrainError
from posttrain.sampling.vllm_worker_process import WorkerProcess
from posttrain.settings.engines import VllmEngineSettings

# On a processor compiling takes longer than it saves, and a prompt that is cut in chunks makes a
# request's own seed fail. Of vLLM's own blocks of 128 tokens a short prompt fills none, so its n
# samples would share nothing: 500 x 16 samples in ten closed batches went 15 % faster with 32.
CPU_OPTIONS = {"enforce_eager": True, "enable_chunked_prefill": False, "block_size": 32}


class VllmWorkers:
    """One or more worker processes with the same weights; where one fails, all end."""

    def __init__(self, settings: VllmEngineSettings, options: Mapping[str, Any]) -> None:
        """Start them and load the model.

        Args:
            settings: interpreter, memory and parallelism.
            options: keyword arguments of vLLM's LLM.

        Raises:
            BadInput: vLLM is not installed.
            StepFailed: vLLM could not load the model; with the end of its log.
        """
        self._workers: list[WorkerProcess] = []
        message = {"do": "load", "options": options, "cpu_options": CPU_OPTIONS}
        try:
            for place in range(settings.data_parallel_size):
                environment = _environment(settings, place)
                self._workers.append(WorkerProcess(settings.python, environment))
            answers = self.ask([message] * len(self._workers), settings.start_seconds)
        except PosttrainError:
            self.close()
            raise
        self.reloads = all(answer["reloads"] for answer in answers)
        """Whether other weights can be loaded in place."""

    def __len__(self) -> int:
        return len(self._workers)

    def ask(
        self, messages: Sequence[Mapping[str, Any]], seconds: float | None
    ) -> list[dict[str, Any]]:
        """One message to each worker, then one answer of each; any failure ends them all.

        Raises:
            BadInput: the workers were closed, or cannot serve a request.
            StepFailed: a worker died, or took longer than `seconds`.
        """
        if not self._workers:
            raise BadInput("this vLLM engine is closed; open a new one")
        try:
            for worker, message in zip(self._workers, messages, strict=True):
                worker.send(message)
            return [worker.receive(seconds) for worker in self._workers]
        except PosttrainError:
            self.close()
            raise

    def close(self) -> None:
        """End every process; a second call does nothing."""
        for worker in self._workers:
            worker.close()
        self._workers = []


def model_options(model_folder: Path, settings: VllmEngineSettings) -> dict[str, Any]:
    """Keyword arguments of vLLM's LLM that name a model and its share of the machine."""
    options: dict[str, Any] = {
        "model": str(model_folder.resolve()),
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "disable_log_stats": True,
        "trust_remote_code": False,
    }
    if settings.max_model_len is not None:
        options["max_model_len"] = settings.max_model_len
    if settings.max_num_seqs is not None:
        options["max_num_seqs"] = settings.max_num_seqs
    if settings.quantization is not None:
        options["quantization"] = settings.quantization
    return options


def _environment(settings: VllmEngineSettings, place: int) -> dict[str, str]:
    variables = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_kv_cache_gb),
        "VLLM_DO_NOT_TRACK": "1",
        # The engine in the worker itself: it starts sooner, and nothing else could outlive it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if settings.data_parallel_size > 1:
        each = settings.tensor_parallel_size
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = shown if shown != [""] else list(map(str, range(each * (place + 1))))
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(names[each * place : each * (place + 1)])
        # For a processor: left alone, every worker would bind its threads to the same cores.
        cores = sorted(os.sched_getaffinity(0))
        count = settings.data_parallel_size
        share = cores[place * len(cores) // count : (place + 1) * len(cores) // count] or cores
        variables["OMP_NUM_THREADS"] = str(max(1, len(share) // each))
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
            ",".join(map(str, share[rank::each] or share)) for rank in range(each)
        )
    return variables
