"""The scheduler: steps that need each other wait, the others run side by side."""

from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.controller import Run
from posttrain.errors import BadInput, StepFailed, WaitingForPeople
from tests.test_steps import STAGES, go, run_of, step


@pytest.fixture(autouse=True)
def _find_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STAGES))


def at_once(run: Run, num: int) -> Run:
    resources = run.plan.resources.model_copy(update={"parallel": num})
    return replace(run, plan=run.plan.model_copy(update={"resources": resources}))


def test_steps_that_do_not_need_each_other_run_side_by_side(tmp_path: Path) -> None:
    one = step("one", "meets", f"{tmp_path}:one:two")
    two = step("two", "meets", f"{tmp_path}:two:one")
    told = go(at_once(run_of(tmp_path, one, two), 2), one, two)
    assert sorted(told[:2]) == ["begun round-1/one", "begun round-1/two"]
    assert sorted(told[2:]) == ["done round-1/one", "done round-1/two"]


def test_a_step_starts_when_what_it_reads_is_done(tmp_path: Path) -> None:
    one = step("one")
    two = step("two", inputs={"before": one})
    three = step("three", inputs={"before": two})
    run = at_once(run_of(tmp_path, one, two, three), 3)
    told = [word for word in go(run, three, two, one) if "/" in word and word[0].isalpha()]
    assert told == [
        f"{what} round-1/{n}" for n in ("one", "two", "three") for what in ("begun", "done")
    ]


def test_what_needs_no_people_is_done_before_the_wait_is_told(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    waits = step("waits", files={"answers": answers}, awaited=frozenset({"answers"}))
    after = step("after", inputs={"before": waits})
    free = step("free")
    run = at_once(run_of(tmp_path, waits, after, free), 2)
    waits_for = {"tasks": free}
    waits = replace(waits, inputs=waits_for)
    with pytest.raises(WaitingForPeople, match="waits"):
        go(run, waits, after, free)
    assert run.folder.state(free).kind == "done"
    assert not run.folder.path(after).exists()


def test_a_failed_step_ends_those_beside_it_and_they_are_made_again(tmp_path: Path) -> None:
    slow = step("slow", "meets", f"{tmp_path}:slow:never")
    fails = step("fails", "raises")
    run = at_once(run_of(tmp_path, slow, fails), 2)
    with pytest.raises(StepFailed, match="fails"):
        go(run, slow, fails)
    assert not run.folder.path(slow).exists()
    (tmp_path / "never").touch()
    assert "resumed round-1/slow" in go(run, slow)


def test_a_stale_step_stops_the_start_of_others_but_not_what_runs(tmp_path: Path) -> None:
    old = step("one")
    go(run_of(tmp_path, old), old)
    beside, one, later = step("beside"), step("one", text="b"), step("later")
    run = at_once(run_of(tmp_path, beside, one, later), 2)
    with pytest.raises(BadInput, match="text a → b"):
        go(run, beside, one, later)
    assert run.folder.state(beside).kind == "done"
    assert run.folder.state(later).kind == "to run"
