"""What a training says when it goes wrong, and where it reports to."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from posttrain.errors import BadInput, GuardFailed
from posttrain.settings.resources import Resources
from posttrain.settings.training import DpoSettings, RewardSettings, SftSettings
from posttrain.training.dpo import Dpo, train_dpo
from posttrain.training.job import Job
from posttrain.training.reward import Reward, train_reward
from posttrain.training.sft import Sft, train_sft
from tests.tiny_model import TEMPLATE, examples, make_model, preferences

COMMON = {"batch_size": 8, "learning_rate": 1e-3, "max_length": 128}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model."""
    return make_model(tmp_path_factory.mktemp("model") / "base")


def job(work: Path, **resources: Any) -> Job:
    """A training on the CPU, in float32."""
    circumstances = Resources.model_validate({"device": "cpu", **resources})
    return Job(work, circumstances, "float32", TEMPLATE)


def of_sft(base: Path, out: Path, own: Job) -> None:
    train_sft(base, examples(42), out, SftSettings.model_validate(COMMON), own)


def of_dpo(base: Path, out: Path, own: Job) -> None:
    train_dpo(base, preferences(42), out, DpoSettings.model_validate(COMMON), own)


def of_reward(base: Path, out: Path, own: Job) -> None:
    train_reward(base, preferences(42), out, RewardSettings.model_validate(COMMON), own)


@pytest.mark.parametrize(("trainer", "train"), [(Sft, of_sft), (Dpo, of_dpo), (Reward, of_reward)])
def test_a_loss_that_is_no_number_stops_and_names_the_rows_of_its_step(
    trainer: Any, train: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are split in parts; the bad one is in the middle of a step."""
    bad, loss, seen = 23, trainer.compute_loss, []

    def spoilt(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(list(self.rows_of_step))
        return loss(self, *args, **kwargs) * (float("nan") if bad in seen[-1] else 1)

    monkeypatch.setattr(trainer, "compute_loss", spoilt)
    rows = examples(42) if train is of_sft else preferences(42)
    with pytest.raises(GuardFailed, match="the loss is nan at step") as caught:
        train(base, tmp_path / "out", job(tmp_path / "work", micro_batch_size=4))
    text = str(caught.value)
    named = text.rpartition("rows of that step: ")[2].split(", ")
    assert rows[bad].id in named
    assert len(set(named)) == len(named) == 8
    assert named == [rows[place].id for place in seen[-1]]
    steps = (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()
    assert f"at step {json.loads(steps[-1])['step']};" in text
    assert not (tmp_path / "out").exists()


def test_the_rows_of_a_step_are_those_its_batch_was_made_of(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, checked = examples(42), []
    compute = Sft.compute_loss

    def compare(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        text = self.processing_class.decode(inputs["input_ids"].flatten())
        for place in self.rows_of_step:
            assert rows[place].messages[-1].content in text
            checked.append(place)
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Sft, "compute_loss", compare)
    of_sft(base, tmp_path / "out", job(tmp_path / "work"))
    assert sorted(checked) == list(range(42))


TOO_LARGE = """
import resource, sys
from pathlib import Path
from posttrain.errors import StepFailed
from tests.test_training_trouble import job
from tests.tiny_model import examples
from posttrain.settings.training import SftSettings
from posttrain.training.sft import train_sft

base, work, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
settings = SftSettings(batch_size=4096, max_length=128, max_steps=1)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = used + (600 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    train_sft(base, examples(4096), work / "out", settings, job(work, micro_batch_size=size))
except StepFailed as error:
    print(error)
    sys.exit(7)
"""


def test_a_training_without_memory_says_which_setting_to_lower(base: Path, tmp_path: Path) -> None:
    """With the setting lowered as it says, the same training fits."""

    def start(size: int) -> "subprocess.CompletedProcess[str]":
        folder = tmp_path / str(size)
        folder.mkdir()
        arguments = [sys.executable, "-c", TOO_LARGE, str(base), str(folder), str(size)]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    whole, parts = start(4096), start(64)
    assert whole.returncode == 7, whole.stderr[-2000:]
    assert "lower resources.micro_batch_size (now 4096 rows at a time)" in whole.stdout
    assert "sft.max_length (now 128 tokens)" in whole.stdout
    assert parts.returncode == 0, parts.stderr[-2000:] + parts.stdout


def test_other_errors_of_torch_are_told_as_they_are(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Sft, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        of_sft(base, tmp_path / "out", job(tmp_path / "work"))


def test_a_tracker_gets_what_metrics_jsonl_gets(base: Path, tmp_path: Path) -> None:
    own = replace(
        job(tmp_path / "work", report_to=["tensorboard"]), tracked=tmp_path / "tracked" / "sft"
    )
    of_sft(base, tmp_path / "out", own)
    lines = (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()
    events = EventAccumulator(str(tmp_path / "tracked" / "sft"))
    events.Reload()
    found = [event.value for event in events.Scalars("train/loss")]
    assert found == pytest.approx([json.loads(line)["loss"] for line in lines])
    assert not list((tmp_path / "work").glob("**/events*"))


def test_an_unknown_tracker_is_bad_input(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"report_to: wand is unknown .*tensorboard"):
        of_sft(base, tmp_path / "out", job(tmp_path / "work", report_to=["wand"]))
