"""What a sampling step reads, and so what makes its responses stale.

pytest tests/test_planning.py
"""

from pathlib import Path

import pytest

from posttrain.controller import Run
from posttrain.errors import BadInput
from posttrain.steps.run_folder import Identity
from posttrain.workspace import Workspace

PLAN = """
base: base
mix: {maths: 1.0}
bootstrap: {human: [rows.jsonl]}
rounds:
  - {prompts: [{path: rows.jsonl}], preferences: [rows.jsonl]}
  - {prompts: [{path: rows.jsonl}], preferences: [rows.jsonl]}
evaluation: {sources: [{path: rows.jsonl}]}
tasks: {models: [previous]}
"""
HOOKS = "from posttrain.hooks import Verdict\ndef verify(c, p, h):\n    return Verdict({})\n"


def planned(root: Path, *overrides: str, passed: bool = True) -> Run:
    """A plan of two rounds with a recipe of its own, resolved; nothing runs."""
    for path, text in (
        ("rounds/made.yaml", PLAN),
        ("rows.jsonl", "{}"),
        ("base/config.json", "{}"),
        ("expert/config.json", "{}"),
        ("recipes/maths/recipe.yaml", "name: maths\nhooks: [verify]\n"),
        ("recipes/maths/hooks.py", HOOKS.format(passed)),
        ("recipes/maths/prompts/kind.jinja", "Be kind."),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return Run.open(Workspace(root), "made", list(overrides))


def identities(run: Run) -> dict[str, str]:
    found = {name: run.folder.identity(step) for name, step in run.steps.items()}
    return {name: one.fingerprint for name, one in found.items() if isinstance(one, Identity)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_another_verifier_costs_no_samples_unless_k_is_adaptive(tmp_path: Path) -> None:
    before = identities(planned(tmp_path))
    moved = changed(before, identities(planned(tmp_path, passed=False)))
    assert "round-1/select" in moved
    assert not moved & {"round-1/sample", "round-1/score"}
    adaptive = "sampling.adaptive.first=2"
    before = identities(planned(tmp_path, adaptive))
    assert "round-1/sample" in changed(
        before, identities(planned(tmp_path, adaptive, passed=False))
    )


def test_a_target_score_makes_sampling_wait_for_the_reward_model(tmp_path: Path) -> None:
    plain = planned(tmp_path, "sampling.adaptive.first=2").steps["round-1/sample"]
    aiming = planned(tmp_path, "sampling.adaptive.target=1.5").steps["round-1/sample"]
    assert set(plain.inputs) == {"prompts", "policy"}
    assert set(aiming.inputs) == {"prompts", "policy", "reward"}


def test_a_recipe_names_the_model_it_samples_from(tmp_path: Path) -> None:
    best = planned(tmp_path, "recipes.maths.policy=best")
    second = best.steps["round-2/sample"]
    assert second.choices["policy:maths"].file == "best-maths.json"
    assert second.choices["policy:maths"].gate.address == "round-1/gate"
    assert set(best.steps["round-1/sample"].choices) == set()
    expert = planned(tmp_path, "recipes.maths.policy.model=expert")
    assert expert.steps["round-1/sample"].files["expert:maths"] == tmp_path / "expert"


def test_a_later_rounds_temperature_leaves_earlier_rounds_alone(tmp_path: Path) -> None:
    before = identities(planned(tmp_path, "recipes.maths.temperature=0.8"))
    own = 'recipes.maths.temperature_in_round={"last": 0.6}'
    run = planned(tmp_path, "recipes.maths.temperature=0.8", own)
    assert not changed(before, identities(run))
    found = [run.steps[f"round-{n}/sample"].settings["recipes"]["maths"] for n in (1, 2)]
    assert [one["temperature"] for one in found] == [0.8, 0.6]


def test_steering_prompts_are_read_where_a_recipe_steers(tmp_path: Path) -> None:
    assert "steering:maths" not in planned(tmp_path).steps["round-1/sample"].files
    steered = planned(tmp_path, "recipes.maths.system_prompts=[kind]")
    folder = tmp_path / "recipes" / "maths" / "prompts"
    assert steered.steps["round-1/sample"].files["steering:maths"] == folder


def test_an_average_may_hold_what_the_round_before_made(tmp_path: Path) -> None:
    run = planned(tmp_path, "sft.average.previous=0.2", "reward.average.previous=0.5")
    first, second = (run.steps[f"round-{n}/sft"] for n in (1, 2))
    assert set(first.inputs) == {"member:a", "member:b"}
    assert first.settings["weights"] is None
    assert second.settings["weights"] == pytest.approx({"a": 0.4, "b": 0.4, "previous": 0.2})
    assert second.inputs["member:previous"] == first
    reward = run.steps["round-2/rm"]
    assert reward.settings["weights"] == pytest.approx({"a": 0.25, "b": 0.25, "previous": 0.5})
    assert run.steps["round-2/dpo"].settings["weights"] is None


def test_a_greedy_average_reads_the_dev_prompts(tmp_path: Path) -> None:
    step = planned(tmp_path, "dpo.average.method=greedy").steps["round-1/dpo"]
    assert step.function == "posttrain.stages.soup:run"
    assert set(step.inputs) == {"heldout", "member:a", "member:b"}
    for wrong, message in {
        "reward.average.method=greedy": "a reward model takes uniform or weighted",
        "sft.average={method: greedy, previous: 0.1}": "takes what measures best",
    }.items():
        with pytest.raises(BadInput, match=message):
            planned(tmp_path, wrong)
