"""Steps: identity, states, drift, publishing, crashes, locks; nothing outlives its owner."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import _preempted
from posttrain.controller import Run
from posttrain.errors import BadInput, Busy, Damaged, Preempted, StepFailed
from posttrain.scheduler import run_steps
from posttrain.settings.plan import Plan
from posttrain.steps.fingerprint import drift, fingerprint
from posttrain.steps.lock import run_lock
from posttrain.steps.manifest import check_hashes, read_manifest
from posttrain.steps.run_folder import Identity, RunFolder
from posttrain.steps.step import Choice, Step
from posttrain.tables import read_json
from posttrain.workspace import Workspace

STAGES = Path(__file__).parent / "fake_stages"


class Silent:
    """A watch that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, step: Step, resumed: bool) -> None:
        self.told.append(f"{'resumed' if resumed else 'begun'} {step.address}")

    def progress(self, step: Step, done: int, total: int) -> None:
        self.told.append(f"{done}/{total}")

    def end(self, step: Step, seconds: float) -> None:
        self.told.append(f"done {step.address}")

    def skip(self, step: Step) -> None:
        self.told.append(f"skipped {step.address}")


@pytest.fixture(autouse=True)
def _find_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STAGES))


def step(name: str, function: str = "writes", text: str = "a", **more: Any) -> Step:
    return Step(f"round-1/{name}", f"misbehaving:{function}", 1, {"text": text}, **more)


def run_of(root: Path, *steps: Step) -> Run:
    plan = Plan.model_validate(
        {
            "base": "base",
            "mix": {"math": 1.0},
            "bootstrap": {"human": ["x"]},
            "rounds": [{"prompts": [{"path": "x"}], "preferences": ["x"]}],
            "evaluation": {"sources": [{"path": "x"}]},
            "resources": {"min_free_gib": 0},
        }
    )
    (root / "base").mkdir(parents=True, exist_ok=True)
    folder = RunFolder(root / "runs" / "test")
    folder.root.mkdir(parents=True, exist_ok=True)
    return Run(Workspace(root), "test", "test", plan, {s.address: s for s in steps}, folder)


def go(run: Run, *steps: Step, redo_stale: bool = False) -> list[str]:
    watch = Silent()
    run_steps(run, steps, watch, redo_stale)
    return watch.told


def test_a_step_publishes_its_rows_and_its_books(tmp_path: Path) -> None:
    one = step("one")
    run = run_of(tmp_path, one)
    assert run.folder.state(one).kind == "to run"
    assert go(run, one) == ["begun round-1/one", "1/1", "done round-1/one"]
    folder = run.folder.path(one)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.rows == {"rows": 1, "dropped": 1}
    assert manifest.funnel == [
        {
            "name": "writing",
            "rows_in": 2,
            "rows_out": 1,
            "dropped": {"not wanted": 1},
            "changed": {},
        }
    ]
    assert manifest.metrics == {"length": 1}
    assert manifest.versions["torch"]
    assert set(manifest.files) == {"rows.jsonl", "dropped.jsonl"}
    assert not run.folder.partial(one).exists()
    assert go(run, one) == ["skipped round-1/one"]


def test_identity_is_made_of_literals_and_content_not_of_places(tmp_path: Path) -> None:
    prints = []
    for place, content in (("a", "same"), ("b", "same"), ("c", "other")):
        file = tmp_path / place / "data.jsonl"
        file.parent.mkdir()
        file.write_text(content)
        one = step("one", files={"data": file})
        known = run_of(tmp_path / place, one).folder.identity(one)
        assert isinstance(known, Identity)
        prints.append(known.fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_circumstances_do_not_make_a_step_stale(tmp_path: Path) -> None:
    one = Step("round-1/one", "misbehaving:writes", 1, {"text": "a", "threads": 1})
    run = run_of(tmp_path, one)
    go(run, one)
    more = Step("round-1/one", "misbehaving:writes", 1, {"text": "a", "threads": 4})
    assert run_of(tmp_path, more).folder.state(more).kind == "stale"
    how = frozenset({"threads"})
    first = Step("round-1/two", "misbehaving:writes", 1, {"text": "a", "threads": 1}, how)
    second = Step("round-1/two", "misbehaving:writes", 1, {"text": "a", "threads": 4}, how)
    go(run_of(tmp_path, first), first)
    assert run_of(tmp_path, second).folder.state(second).kind == "done"


def test_a_fingerprint_refuses_what_has_no_stable_identity() -> None:
    with pytest.raises(TypeError):
        fingerprint({"value": object()})
    with pytest.raises(ValueError):
        fingerprint({"value": float("nan")})


def test_drift_is_told_field_by_field() -> None:
    old = {"settings": {"dpo": {"beta": 0.1, "seed": 0}}, "version": 1}
    new = {"settings": {"dpo": {"beta": 0.2, "nll": 0.2}}, "version": 1}
    assert drift(old, new) == ["dpo.beta 0.1 → 0.2", "dpo.nll absent → 0.2", "dpo.seed 0 → absent"]


def test_a_stale_step_is_refused_then_set_aside(tmp_path: Path) -> None:
    old, new = step("one", text="a"), step("one", text="b")
    go(run_of(tmp_path, old), old)
    run = run_of(tmp_path, new)
    state = run.folder.state(new)
    assert (state.kind, state.reasons) == ("stale", ("text a → b",))
    with pytest.raises(BadInput, match="text a → b"):
        go(run, new)
    assert "begun round-1/one" in go(run, new, redo_stale=True)
    aside = list((run.folder.root / ".replaced" / "round-1").iterdir())
    assert len(aside) == 1
    assert json.loads((aside[0] / "rows.jsonl").read_text())["text"] == "a"
    assert json.loads((run.folder.path(new) / "rows.jsonl").read_text())["text"] == "b"


def test_a_changed_input_makes_what_reads_it_stale(tmp_path: Path) -> None:
    first, changed = step("one", text="a"), step("one", text="b")
    reader = step("two", inputs={"rows": first})
    go(run_of(tmp_path, first, reader), first, reader)
    reader_now = step("two", inputs={"rows": changed})
    state = run_of(tmp_path, changed, reader_now).folder.state(reader_now)
    assert state.kind == "stale"
    assert state.reasons[0].startswith("inputs.rows")


def test_what_a_gate_chose_is_unknown_until_it_has(tmp_path: Path) -> None:
    gate = step("gate")
    later = Step("round-2/sample", "misbehaving:writes", 1, {}, choices={"policy": Choice(gate)})
    run = run_of(tmp_path, gate, later)
    state = run.folder.state(later)
    assert (state.kind, state.reasons) == ("unknown", ("until round 1",))


@pytest.mark.parametrize("function", ["dies", "raises"])
def test_a_crash_publishes_nothing_and_shows_the_end_of_the_log(
    tmp_path: Path, function: str
) -> None:
    one = step("one", function)
    run = run_of(tmp_path, one)
    words = "killed by signal 9" if function == "dies" else "ended with status 1"
    with pytest.raises(StepFailed, match=words) as caught:
        go(run, one)
    assert ("about to die" if function == "dies" else "a bug in a stage") in str(caught.value)
    assert not run.folder.path(one).exists()


def test_an_error_of_ours_keeps_its_kind(tmp_path: Path) -> None:
    one = step("one", "refuses")
    with pytest.raises(BadInput, match="the data is wrong"):
        go(run_of(tmp_path, one), one)


def test_a_full_disk_is_named_and_leaves_nothing_published(tmp_path: Path) -> None:
    one = step("one", "fills_the_disk")
    run = run_of(tmp_path, one)
    with pytest.raises(StepFailed, match="No space left on device"):
        go(run, one)
    assert not run.folder.path(one).exists()


def test_too_little_space_is_refused_before_a_step_starts(tmp_path: Path) -> None:
    one = step("one")
    run = run_of(tmp_path, one)
    plan = run.plan.model_copy(
        update={"resources": run.plan.resources.model_copy(update={"min_free_gib": 1e9})}
    )
    with pytest.raises(StepFailed, match="MiB are free"):
        go(replace(run, plan=plan), one)


def test_a_killed_step_goes_on_where_it_stopped(tmp_path: Path) -> None:
    one = step("one", "resumes")
    run = run_of(tmp_path, one)
    with pytest.raises(StepFailed):
        go(run, one)
    assert go(run, one)[0] == "resumed round-1/one"
    assert read_json(run.folder.path(one) / "rows.jsonl")["first"] == "done"
    assert not (run.folder.path(one) / "work").exists()


@pytest.fixture
def terminated(tmp_path: Path) -> Iterator[Path]:
    """A file; once it appears, this process is sent SIGTERM, as a user's command would be."""
    mark, handler = tmp_path / "running", signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _preempted)

    def send() -> None:
        while not mark.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    yield mark
    mark.touch()
    signal.signal(signal.SIGTERM, handler)


def test_a_step_that_is_asked_to_end_saves_its_work(tmp_path: Path, terminated: Path) -> None:
    one = step("one", "saves_when_asked", str(terminated))
    run = run_of(tmp_path, one)
    with pytest.raises(Preempted) as caught:
        go(run, one)
    assert caught.value.exit_code == 75
    assert (run.folder.partial(one) / "work" / "saved").exists()
    assert go(run, one)[0] == "resumed round-1/one"
    assert read_json(run.folder.path(one) / "rows.jsonl")["id"] == "saved"


@pytest.mark.parametrize("function", ["never_ends", "may_end_anywhere"])
def test_a_step_that_does_not_save_is_ended_all_the_same(
    function: str, tmp_path: Path, terminated: Path
) -> None:
    one = step("one", function, str(terminated))
    run = run_of(tmp_path, one)
    resources = run.plan.resources.model_copy(update={"grace_seconds": 1.0})
    run = replace(run, plan=run.plan.model_copy(update={"resources": resources}))
    begun = time.monotonic()
    with pytest.raises(Preempted):
        go(run, one)
    assert time.monotonic() - begun < 30


def test_work_for_other_settings_is_not_continued(tmp_path: Path) -> None:
    one, other = step("one", "resumes", "a"), step("one", "resumes", "b")
    with pytest.raises(StepFailed):
        go(run_of(tmp_path, one), one)
    run = run_of(tmp_path, other)
    with pytest.raises(StepFailed):
        go(run, other)


def test_a_step_killed_before_its_last_rename_is_only_renamed(tmp_path: Path) -> None:
    one = step("one")
    go(run_of(tmp_path, one), one)
    run = run_of(tmp_path, one)
    made = (run.folder.path(one) / "manifest.json").stat().st_mtime_ns
    run.folder.path(one).rename(run.folder.partial(one))
    (run.folder.partial(one) / "work").mkdir()
    assert go(run, one) == ["skipped round-1/one"]
    assert (run.folder.path(one) / "manifest.json").stat().st_mtime_ns == made
    assert not (run.folder.path(one) / "work").exists()
    assert not run.folder.partial(one).exists()


def test_a_file_of_the_folder_we_stand_in_shadows_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "statistics.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    one = step("one")
    assert "done round-1/one" in go(run_of(tmp_path, one), one)


def test_each_step_of_a_shared_process_tells_its_own_peak(tmp_path: Path) -> None:
    big, small = step("big", "takes_memory"), step("small")
    run = run_of(tmp_path, big, small)
    go(run, big, small)
    peaks = [run.folder.manifest(one) for one in (big, small)]
    assert all(peaks)
    first, second = (one.peak_memory_mib for one in peaks if one)
    assert first > second + 200


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    one = step("one")
    go(run_of(tmp_path, one), one)
    run = run_of(tmp_path, one)
    rows = run.folder.path(one) / "rows.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(whole.replace(b"a", b"b"))
    manifest = run.folder.manifest(one)
    assert manifest is not None
    assert run.folder.state(one).kind == "done"
    assert check_hashes(run.folder.path(one), manifest) == ["rows.jsonl"]
    rows.write_bytes(whole[:-1])
    with pytest.raises(Damaged, match=r"rows\.jsonl"):
        run_of(tmp_path, one).folder.state(one)
    rows.unlink()
    with pytest.raises(Damaged, match="missing"):
        run_of(tmp_path, one).folder.state(one)


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


DAEMON = """
import sys
sys.path.insert(0, {tests!r})
from test_steps import go, run_of, step
from pathlib import Path
one = step("one", "leaves_a_daemon", {pid_file!r})
go(run_of(Path({root!r}), one), one)
"""


def test_no_process_outlives_a_killed_controller(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = DAEMON.format(
        tests=str(Path(__file__).parent), pid_file=str(pid_file), root=str(tmp_path)
    )
    controller = subprocess.Popen([sys.executable, "-c", script])
    end = time.monotonic() + 60
    while not pid_file.exists() or not pid_file.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    daemon = int(pid_file.read_text())
    assert not gone(daemon, 0.2)
    os.kill(controller.pid, signal.SIGKILL)
    controller.wait()
    assert gone(daemon)


def test_orphans_of_a_step_are_not_left_as_zombies(tmp_path: Path) -> None:
    one = step("one", "leaves_zombies", str(tmp_path / "count"))
    go(run_of(tmp_path, one), one)
    assert (tmp_path / "count").read_text() == "0"


HOLD = """
import sys, time
from pathlib import Path
from posttrain.steps.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_writer_at_a_time_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=f"process {holder.pid}"), run_lock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with run_lock(tmp_path):
        pass


def test_a_fresh_heartbeat_of_another_host_counts_as_held(tmp_path: Path) -> None:
    beat = {"host": "elsewhere", "pid": 1, "heartbeat": time.time()}
    (tmp_path / ".holder.json").write_text(json.dumps(beat))
    with pytest.raises(Busy, match="elsewhere"), run_lock(tmp_path):
        pass
    (tmp_path / ".holder.json").write_text(json.dumps({**beat, "heartbeat": time.time() - 3600}))
    with run_lock(tmp_path):
        pass
