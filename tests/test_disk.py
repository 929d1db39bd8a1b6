"""What gc may remove: never what an unfinished step, or the chosen policy, still needs."""

from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.controller import Run
from posttrain.disk import collect, collectable
from posttrain.steps.manifest import check_sizes
from posttrain.steps.step import Choice, Step
from tests.test_steps import STAGES, go, run_of


@pytest.fixture(autouse=True)
def _find_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STAGES))


def model(number: int, name: str = "dpo") -> Step:
    settings = {"text": f"{number}{name}"}
    return Step(f"round-{number}/{name}", "misbehaving:saves_a_model", 1, settings, weights=True)


def gate(number: int, chosen: Step) -> Step:
    settings = {"text": f"{number}", "chosen": chosen.address}
    return Step(f"round-{number}/gate", "misbehaving:chooses", 1, settings)


def addresses(run: Run) -> set[str]:
    weights = run.folder.root.rglob("*.safetensors")
    return {str(p.parent.parent.relative_to(run.folder.root)) for p in weights}


def test_a_policy_that_an_unfinished_step_reads_stays(tmp_path: Path) -> None:
    first, second, third = (model(number) for number in (1, 2, 3))
    one, two, three = gate(1, first), gate(2, first), gate(3, third)
    tasks = Step(
        "round-3/tasks", "misbehaving:writes", 1, {"text": "t"}, choices={"previous": Choice(two)}
    )
    run = run_of(tmp_path, first, one, second, two, third, three, tasks)
    plan = run.plan.model_copy(update={"keep": run.plan.keep.model_copy(update={"policy": 1})})
    run = replace(run, plan=plan)
    go(run, first, one, second, two, third, three)
    collect(run, collectable(run))
    assert addresses(run) == {"round-1/dpo", "round-3/dpo"}
    go(run, tasks)
    collect(run, collectable(run))
    assert addresses(run) == {"round-3/dpo"}
    manifest = run.folder.manifest(second)
    assert manifest is not None
    check_sizes(run.folder.path(second), manifest)
    assert run.folder.state(second).kind == "done"


def test_set_aside_weights_go_but_their_manifests_stay(tmp_path: Path) -> None:
    one = model(1)
    run = run_of(tmp_path, one)
    go(run, one)
    (aside,) = run.folder.set_aside([one])
    collect(run, collectable(run))
    assert (aside / "manifest.json").is_file()
    assert not list(aside.rglob("*.safetensors"))


def test_a_dry_look_removes_nothing(tmp_path: Path) -> None:
    old, new = model(1, "rm"), model(2, "rm")
    run = run_of(tmp_path, old, new)
    go(run, old, new)
    assert [path.parent.parent.parent.name for path in collectable(run)] == ["round-1"]
    assert len(addresses(run)) == 2
