"""The machines that generate text, score it and run programs: their settings. Loads nothing heavy.

Knows the sampling engines' settings (a union told apart by `type`), a scorer's, and the sandbox's
limits. Knows no engine and no sandbox: `posttrain.sampling.service`, `posttrain.reward_files` and
`posttrain.sandbox` read these.

    parse(VllmEngineSettings, {"type": "vllm", "max_model_len": 4096}, "rounds/my.yaml")
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from posttrain.settings.base import Settings


class TransformersEngineSettings(Settings):
    """Sampling with transformers, in the step's own process: small models, no extra install."""

    type: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass. `auto` is float32 on a CPU, else what the weights have."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Responses decoded together. It changes speed and memory, never which seed a sample draws
    from."""


class VllmEngineSettings(Settings):
    """Sampling with vLLM, in a process of its own that ends with the step."""

    type: Literal["vllm"] = "vllm"
    python: Path | None = None
    """Interpreter of the environment that holds vLLM, which pins torch and transformers and so
    often needs one of its own (Python 3.11 or newer; posttrain need not be installed in it). None
    is the running one."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto` is the dtype that the model's config names."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Accelerators that share one copy of the model."""
    data_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Copies of the model, each a worker process with accelerators of its own; requests are dealt
    out by their place in the list."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of an accelerator's memory for weights and KV cache."""
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """Longest prompt plus response, in tokens. None is what the model's config allows."""
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    """Responses that are generated at a time. None is vLLM's own choice, 256 on a processor and
    1,024 on a large accelerator."""
    quantization: str | None = None
    """vLLM's name of a quantization, such as `fp8`."""
    cpu_kv_cache_gb: Annotated[int, Field(ge=1)] = 1
    """Memory for the KV cache where there is no accelerator."""
    start_seconds: Annotated[float, Field(gt=0)] = 900.0
    """How long loading the model may take before the step fails."""


class OpenAIEngineSettings(Settings):
    """Sampling from a server that already runs: `vllm serve`, or one that speaks its protocol."""

    type: Literal["openai"] = "openai"
    url: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")]
    """Where its OpenAI-compatible routes lie, such as `http://localhost:8000/v1`."""
    model: str | None = None
    """The name that it serves the model by. None is the only one it serves."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Requests in flight, each for all samples of one prompt. It changes speed, never which seed a
    sample draws from."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """How long one request may take, its wait in the server's queue included."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Further tries of a request that the server could not answer, after pauses that double from
    half a second to a minute, or as long as it says."""
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """Longest prompt plus response, in tokens. None is what the server and the model's config
    allow."""
    reload: bool = False
    """Load the weights that a step samples from into the server first. It must be one `vllm serve`
    on an accelerator, started with VLLM_SERVER_DEV_MODE=1, that sees the model folder under the
    same path and serves nobody else."""
    trust_served_model: bool = False
    """Sample although the server does not say which folder its weights are from."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.reload and self.trust_served_model:
            raise ValueError(
                "reload and trust_served_model exclude each other: reload loads the step's weights"
            )
        return self


EngineSettings = Annotated[
    TransformersEngineSettings | VllmEngineSettings | OpenAIEngineSettings,
    Field(discriminator="type"),
]


class ScorerSettings(Settings):
    """A reward model to score with, outside of a round."""

    model: Path
    """A model folder with a head of one label."""
    template: Path | None = None
    """Chat template in place of the tokenizer's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where transformers computes. vLLM computes on what its installation was built for."""
    engine: Literal["transformers", "vllm"] = "transformers"
    python: Path | None = None
    """Interpreter of the environment that holds vLLM; None is the running one."""
    reject_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of malformed input rows past which nothing is scored."""


class SandboxLimits(Settings):
    """What one untrusted program may use."""

    mode: Literal["bubblewrap", "limits_only"] = "bubblewrap"
    """`limits_only` is for machines on which bubblewrap can make no namespace, at your own risk: a
    program is held to the limits below and, under root, to a user without rights, but it sees the
    network and every file that all may read, and a process that it leaves behind may live on."""
    seconds: Annotated[float, Field(gt=0)] = 4.0
    """CPU time of a process, rounded up to whole seconds."""
    wall_factor: Annotated[float, Field(ge=1)] = 2.0
    """Wall clock allowed, as a multiple of `seconds`: a busy machine slows a program without making
    it wrong, so a verdict should not hang on the wall clock."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """Address space of a process."""
    processes: Annotated[int, Field(ge=1)] = 32
    """Processes and threads at one time."""
    file_mb: Annotated[int, Field(ge=1)] = 16
    """Size of one file, and of each of the two folders a program may write to."""
    open_files: Annotated[int, Field(ge=8)] = 64
    output_kb: Annotated[int, Field(ge=1)] = 256
    """Bytes kept of the standard output, and as many of the standard error."""
    python: Path | None = None
    """Interpreter that runs the programs. None is the one that the running environment is built
    on; no installed package is visible in either case."""
