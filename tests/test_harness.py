"""Tasks of lm-evaluation-harness by name: a recipe's own, run on the tiny base.

pytest tests/test_harness.py
"""

import json
from pathlib import Path

import pytest

from posttrain.errors import BadInput, StepFailed
from posttrain.planning.rounds import plan_steps
from posttrain.settings.plan import Harness
from posttrain.settings.resources import Resources
from posttrain.settings.stages import HarnessStage
from posttrain.stages import harness
from posttrain.steps.output import Inputs, Output
from posttrain.workspace import Workspace, load_plan

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "rounds" / "tiny" / "base"
TASK = """task: tiny_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 12, until: ["\\n"], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """One with a recipe that brings a task of eight sums, of which the tiny base knows some."""
    folder = tmp_path / "recipes" / "sums"
    (folder / "tasks").mkdir(parents=True)
    (tmp_path / "rounds").mkdir()
    rows = [{"question": f"{a}+{b}=?", "answer": str(a + b)} for a in (12, 31, 40) for b in (2, 5)]
    rows.append({"question": "1+1=?", "answer": "never said"})
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text("name: sums\nharness: [tiny_sums]\n")
    (folder / "tasks" / "tiny_sums.yaml").write_text(TASK.format(data=data))
    return Workspace(tmp_path)


def run(workspace: Workspace, tasks: tuple[str, ...]) -> Output:
    inputs = Inputs(
        {"model": BASE}, workspace, Resources(device="cpu"), workspace.root / "machine.json"
    )
    (workspace.root / "out").mkdir()
    out = Output(workspace.root / "out", lambda done, total: None)
    stage = HarnessStage(seed=0, harness=Harness(dtype="float32"), tasks={"sums": tasks})
    harness.run(inputs, stage, out)
    return out


def test_a_recipes_own_task_is_measured_by_the_harness(workspace: Workspace) -> None:
    run(workspace, ("tiny_sums",))
    found = json.loads((workspace.root / "out" / "results.json").read_text())["sums"]["tiny_sums"]
    assert 0 < found["exact_match"] <= 6 / 7
    assert found["exact_match stderr"] > 0


def test_an_unknown_task_is_named(workspace: Workspace) -> None:
    with pytest.raises(BadInput, match=r"recipes\.sums\.harness: .* no task tiny_sum; "):
        run(workspace, ("tiny_sum",))


def test_a_task_without_its_data_fails_the_step_by_name(workspace: Workspace) -> None:
    (workspace.root / "sums.jsonl").unlink()
    with pytest.raises(StepFailed, match="lm-evaluation-harness: tiny_sums: "):
        run(workspace, ("tiny_sums",))


def test_one_line_of_a_plan_adds_the_step_to_every_round() -> None:
    workspace = Workspace(ROOT)
    plan = load_plan(workspace, "tiny", ["recipes.math.harness=[gsm8k]"])
    steps = plan_steps(workspace, "tiny", plan)
    names = [address for address in steps if "harness" in address]
    assert names[:3] == ["round-0/harness-base", "round-0/harness", "round-1/harness"]
    assert len(names) == 8
    assert not any(
        "harness" in a for a in plan_steps(workspace, "tiny", load_plan(workspace, "tiny"))
    )
