"""Trainings of several processes: the weights of one process, machines by srun, ends and errors.

pytest tests/test_launching.py
"""

import os
import stat
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from posttrain.errors import BadInput, Preempted, StepFailed
from posttrain.settings.resources import Resources
from posttrain.settings.stages import SftStage
from posttrain.settings.training import DpoSettings, RewardSettings, SftSettings
from posttrain.stages import sft
from posttrain.steps import ending
from posttrain.steps.output import Inputs, Output
from posttrain.tables import write_rows
from posttrain.training.checkpoints import newest_complete_checkpoint
from posttrain.training.dpo import train_dpo
from posttrain.training.job import Job, TrainingReport
from posttrain.training.launching import accelerate_config, run_training
from posttrain.training.order import ACCELERATE
from posttrain.training.reward import train_reward
from posttrain.training.sft import train_sft
from posttrain.workspace import Workspace
from tests.test_training import COMMON
from tests.tiny_model import TEMPLATE, examples, make_model, preferences

SRUN = """#!{python}
# Stands for Slurm: runs the command once a node, on this machine, each with its node's number.
import os, subprocess, sys
words = sys.argv[1:]
nodes = next(int(w.partition("=")[2]) for w in words if w.startswith("--nodes="))
command = words[next(i for i, w in enumerate(words) if not w.startswith("--")):]
open(os.environ["SRUN_LOG"], "w").write(" ".join(words))
started = [subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(n)}})
           for n in range(nodes)]
sys.exit(max(one.wait() for one in started))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake srun and scontrol in the path; the file where srun writes what it was told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "srun": SRUN.format(python=sys.executable),
        "scontrol": "#!/bin/sh\necho 127.0.0.1\n",
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SRUN_LOG", str(tmp_path / "srun.log"))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
    return tmp_path / "srun.log"


def job(work: Path, **resources: Any) -> Job:
    return Job(
        work=work,
        resources=Resources(device="cpu", **resources),
        precision="float32",
        template=TEMPLATE,
    )


def train(kind: str, base: Path, out: Path, own: Job, epochs: int = 2) -> TrainingReport:
    """Some steps of a kind of training; rows fill every batch."""
    settings = {**COMMON, "batch_size": 8, "epochs": epochs, "learning_rate": 1e-3}
    if kind == "sft":
        rows = examples(16)
        return run_training(train_sft, "sft", base, rows, out, SftSettings(**settings), own)
    pairs = preferences(16)
    if kind == "dpo":
        return run_training(train_dpo, "dpo", base, pairs, out, DpoSettings(**settings), own)
    reward = RewardSettings(**settings)
    return run_training(train_reward, "reward", base, pairs, out, reward, own)


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_two_processes_train_what_one_trains(kind: str, base: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    two = replace(job(tmp_path / "w2", processes=2), progress=lambda *one: told.append(one))
    reports = [
        train(kind, base, tmp_path / "one", job(tmp_path / "w1")),
        train(kind, base, tmp_path / "two", two),
    ]
    assert reports[0].metrics == pytest.approx(reports[1].metrics, abs=1e-4)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("w1", "w2")]
    assert len(lines[0].splitlines()) == len(lines[1].splitlines()) == 4
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    # What is published is bfloat16: a rounding apart where float32 weights were 1e-5 apart.
    for name in one:
        gap = (one[name].float() - other[name].float()).abs()
        assert gap.max() <= 1e-5 + one[name].float().abs().max() / 128
        assert (gap > 1e-5).float().mean() < 0.02
    assert told[-1] == (4, 4)
    config = yaml.safe_load((tmp_path / "w2/launch" / ACCELERATE).read_text())
    assert (config["use_cpu"], config["num_processes"]) == (True, 2)
    left = newest_complete_checkpoint(tmp_path / "w2", ranks=2)
    assert left is None or (left / "rng_state_1.pth").is_file()


def test_machines_are_started_by_srun(base: Path, tmp_path: Path, slurm: Path) -> None:
    own = job(
        tmp_path / "w2", launcher="slurm", machines=2, srun=("--gres=gpu:8", "--cpus-per-task=4")
    )
    report = train("sft", base, tmp_path / "two", own)
    alone = train("sft", base, tmp_path / "one", job(tmp_path / "w1"))
    assert report.metrics == pytest.approx(alone.metrics, abs=1e-4)
    words = slurm.read_text()
    assert words.startswith("--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --gres")


def test_without_an_allocation_slurm_is_refused(
    base: Path, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST")
    own = job(tmp_path / "w", launcher="slurm", machines=2)
    with pytest.raises(BadInput, match="inside sbatch or salloc"):
        train("sft", base, tmp_path / "out", own)


def test_without_scontrols_answer_slurm_is_told(base: Path, tmp_path: Path, slurm: Path) -> None:
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nexit 3\n")
    own = job(tmp_path / "w", launcher="slurm", machines=2)
    with pytest.raises(StepFailed, match=r"scontrol cannot name the machines of node\[1-2\]"):
        train("sft", base, tmp_path / "out", own)


def test_a_step_keeps_what_accelerate_was_told(base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", examples(16))
    inputs = Inputs(
        paths={"examples": tmp_path, "base": base, "template": TEMPLATE},
        workspace=Workspace(tmp_path),
        resources=Resources(device="cpu", processes=2, precision="float32"),
        machine=tmp_path / "run/machine.json",
    )
    out = Output(tmp_path / "run/round-1/sft-a.partial", lambda done, total: None)
    settings = SftStage(sft=SftSettings.model_validate({**COMMON, "batch_size": 8}))
    sft.run(inputs, settings, out)
    told = yaml.safe_load((out.path / ACCELERATE).read_text())
    assert told["num_processes"] == 2
    assert len((out.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_a_process_raises_comes_back(base: Path, tmp_path: Path) -> None:
    own = job(tmp_path / "w", processes=3)
    with pytest.raises(BadInput, match="batch_size 8 cannot be shared by 3 processes"):
        train("sft", base, tmp_path / "out", own)
    with pytest.raises(BadInput, match="no tokenizer could be loaded"):
        train("sft", tmp_path / "nothing", tmp_path / "out", job(tmp_path / "w", processes=2))


def test_processes_that_die_are_told_with_the_end_of_their_log(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('RANK'): sys.exit('out of memory, say')\n"
    )
    with pytest.raises(StepFailed, match=r"(?s)ended without an answer.*out of memory, say"):
        train("sft", base, tmp_path / "out", job(tmp_path / "w", processes=2))


def test_sigterm_reaches_every_process_and_the_training_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate() -> None:
        metrics = tmp_path / "w/metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.01)
        ending._asked.set()

    threading.Thread(target=terminate, daemon=True).start()
    own = job(tmp_path / "w", processes=2)
    try:
        with pytest.raises(Preempted, match="which is saved"):
            train("dpo", base, tmp_path / "out", own, epochs=40)
    finally:
        ending._asked.clear()
    left = newest_complete_checkpoint(tmp_path / "w", ranks=2)
    assert left is not None
    assert not (tmp_path / "out").exists()
    train("dpo", base, tmp_path / "out", own, epochs=40)
    train("dpo", base, tmp_path / "whole", job(tmp_path / "w2", processes=2), epochs=40)
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "whole")]
    assert files[0] == files[1]


def test_sharded_weights_need_gpus_and_what_they_are_launched_with() -> None:
    fsdp = Resources(processes=8, sharding="fsdp", gradient_checkpointing=True)
    config = accelerate_config(fsdp, cpu=False, head="127.0.0.1", port=1)
    assert config["distributed_type"] == "FSDP"
    assert config["fsdp_config"]["fsdp_version"] == 2
    assert config["fsdp_config"]["fsdp_activation_checkpointing"]
    zero = Resources(processes=8, machines=4, launcher="slurm", sharding="zero3")
    config = accelerate_config(zero, cpu=False, head="node1", port=1)
    assert config["deepspeed_config"]["zero_stage"] == 3
    assert (config["num_machines"], config["num_processes"]) == (4, 32)
    with pytest.raises(BadInput, match="needs GPUs"):
        accelerate_config(fsdp, cpu=True, head="", port=1)
    for wrong in ({"machines": 2}, {"sharding": "fsdp"}):
        with pytest.raises(ValueError, match=f"resources.{next(iter(wrong))}"):
            Resources.model_validate(wrong)
