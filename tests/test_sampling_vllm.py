"""What the vLLM engine promises beside the transformers engine, and that its processes die.

pytest tests/test_sampling_vllm.py
"""

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.errors import BadInput, StepFailed
from posttrain.generation import Request, Sample
from posttrain.models.chat import end_token_ids, load_tokenizer
from posttrain.sampling.service import open_engine
from posttrain.sampling.transformers_engine import TransformersEngine
from posttrain.sampling.vllm_engine import VllmEngine
from posttrain.settings.engines import TransformersEngineSettings, VllmEngineSettings

BASE = Path(__file__).parents[1] / "rounds/tiny/base"
QUESTIONS = ("34+75=?", "Reverse the word lemon.", "7+8=?", "Sort the letters of stone.", "Hi!")
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["score"],
    "additionalProperties": False,
}

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true",
    reason="vllm is not installed",
)


def request(place: int = 0, **fields: object) -> Request:
    """A request for one of the questions."""
    question = QUESTIONS[place % len(QUESTIONS)]
    values = {"id": f"r{place}", "seed": 100 * place, "max_tokens": 16, "n": 2, **fields}
    return Request.model_validate({"messages": [{"role": "user", "content": question}], **values})


@pytest.fixture(scope="module")
def vllm() -> Iterator[VllmEngine]:
    opened = VllmEngine(BASE, VllmEngineSettings(type="vllm", dtype="float32"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    load_tokenizer(BASE).save_pretrained(folder)
    return folder


def descendants(pid: int, deep: bool = True) -> dict[int, str]:
    """Live processes below one, with their command lines; only its children unless deep."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
                commands[int(folder.name)] = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: set[int] = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
        if not deep:
            break
    return {child: commands[child] for child in found - {pid}}


def worker_below(pid: int) -> int | None:
    """The vLLM worker below a process, once it has started."""
    found = [
        child
        for child, command in descendants(pid).items()
        if "vllm_worker.py" in command and "guard" not in command
    ]
    return found[0] if found else None


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    while pids & {int(p.name) for p in Path("/proc").glob("[0-9]*")}:
        assert time.monotonic() < deadline, f"still alive: {pids}"
        time.sleep(0.05)


@needs_vllm
def test_vllm_samples_are_reproducible_and_end_as_they_say(vllm: VllmEngine) -> None:
    requests = [request(i, n=4) for i in range(8)]
    expected = vllm.generate(requests)
    assert vllm.generate(requests[::-1])[::-1] == expected
    single = vllm.generate([request(1, n=1, seed=100 + i) for i in range(4)])
    assert [samples[0] for samples in single] == expected[1]
    ends = end_token_ids(load_tokenizer(BASE))
    for sample in (one for samples in expected for one in samples):
        ended = sample.token_ids[-1] in ends
        assert sample.finish_reason == ("stop" if ended else "length")
        assert ended or len(sample.token_ids) == 16


def check_equal_to_transformers(
    model: Path, requests: list[Request], got: list[list[Sample]]
) -> None:
    engine = TransformersEngine(model, TransformersEngineSettings())
    for ours, theirs in zip(engine.generate(requests), got, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.text, mine.token_ids) == (other.text, other.token_ids)
            assert mine.finish_reason == other.finish_reason
            assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@needs_vllm
def test_two_workers_share_the_requests_and_answer_as_one_does(vllm: VllmEngine) -> None:
    requests = [request(i, n=4) for i in range(5)]
    settings = VllmEngineSettings(
        type="vllm", dtype="float32", data_parallel_size=2, max_num_seqs=8
    )
    two = VllmEngine(BASE, settings)
    try:
        # Workers that share a core need minutes for this.
        begun = time.monotonic()
        assert two.generate(requests) == vllm.generate(requests)
        assert time.monotonic() - begun < 60
    finally:
        two.close()


@needs_vllm
def test_both_engines_agree_on_greedy_and_on_logprobs(vllm: VllmEngine) -> None:
    requests = [request(i, temperature=0.0, logprobs=True) for i in range(5)]
    got = vllm.generate(requests)
    assert [len(samples) for samples in got] == [request(0).n] * 5
    check_equal_to_transformers(BASE, requests, got)


@needs_vllm
def test_vllm_keeps_choices_schemas_and_stops(vllm: VllmEngine) -> None:
    (chosen, shaped) = vllm.generate(
        [request(0, n=8, choices=("yes", "no")), request(1, n=8, json_schema=SCHEMA)]
    )
    assert {sample.text for sample in chosen} <= {"yes", "no"}
    assert {sample.text for sample in shaped} <= {f'{{"score":{i}}}' for i in range(1, 6)}
    assert {sample.finish_reason for sample in (*chosen, *shaped)} == {"stop"}
    free = vllm.generate([request(0, n=8)])[0]
    stop = max((sample.text for sample in free), key=len)[1:3]
    stopped = vllm.generate([request(0, n=8, stop=(stop,))])[0]
    assert [s.text for s in stopped] == [s.text.split(stop)[0] for s in free]


@needs_vllm
def test_an_engine_reloads_and_fails_its_step_when_its_worker_is_killed(other_model: Path) -> None:
    before = set(descendants(os.getpid()))
    settings = VllmEngineSettings(type="vllm", dtype="float32", max_model_len=128)
    engine = VllmEngine(other_model, settings)
    # A prompt of several cache blocks, read once with the old weights.
    messages = [{"role": "user", "content": "12 " * 20}]
    requests = [request(i, messages=messages, temperature=0.0, logprobs=True) for i in range(3)]
    check_equal_to_transformers(other_model, requests, engine.generate(requests))
    engine.reload(BASE)
    check_equal_to_transformers(BASE, requests, engine.generate(requests))
    with pytest.raises(BadInput, match="context of 128 tokens"):
        engine.generate([request(0, max_tokens=120)])

    processes = set(descendants(os.getpid())) - before
    (guard,) = processes & set(descendants(os.getpid(), deep=False))
    worker = worker_below(guard)
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(StepFailed, match="killed by signal 9"):
        engine.generate(requests)
    wait_until_gone(processes)
    with pytest.raises(BadInput, match="closed"):
        engine.generate(requests)


@needs_vllm
def test_a_vllm_worker_dies_with_its_owner() -> None:
    source = f"""
from pathlib import Path
from posttrain.sampling.transformers_engine import TransformersEngine
from posttrain.sampling.vllm_engine import VllmEngine
from posttrain.settings.engines import VllmEngineSettings
VllmEngine(Path({str(BASE)!r}), VllmEngineSettings(type="vllm"))
"""
    owner = subprocess.Popen([sys.executable, "-c", source])
    deadline = time.monotonic() + 60
    while worker_below(owner.pid) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = set(descendants(owner.pid))
    owner.kill()
    owner.wait()
    wait_until_gone(below)


def test_an_environment_without_vllm_is_bad_input(tmp_path: Path) -> None:
    python = tmp_path / "python"
    # No site-packages: the interpreter runs, and has nothing installed.
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(BadInput, match="has no vllm: install it there"):
        VllmEngine(BASE, VllmEngineSettings(type="vllm", python=python))


def test_a_missing_interpreter_is_bad_input(tmp_path: Path) -> None:
    settings = VllmEngineSettings(type="vllm", python=tmp_path / "python")
    with pytest.raises(BadInput, match="no interpreter to run vLLM with"):
        open_engine(settings, BASE, None)


@needs_vllm
def test_a_model_that_does_not_load_shows_the_log(tmp_path: Path) -> None:
    load_tokenizer(BASE).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((BASE / "config.json").read_text())
    with pytest.raises(StepFailed, match=r"(?s)ended with status 1.*  \| "):
        VllmEngine(tmp_path, VllmEngineSettings(type="vllm"))
