"""What the curation step publishes beside its examples.

pytest tests/test_curate_step.py
"""

import json
from pathlib import Path
from typing import Any

from posttrain.rows import Candidate, Example, Prompt
from posttrain.settings.pipeline import Clean, Pipeline
from posttrain.settings.resources import Resources
from posttrain.settings.stages import CurateStage
from posttrain.stages.curate import run
from posttrain.steps.output import Inputs, Output
from posttrain.tables import write_rows
from posttrain.workspace import Workspace
from tests.tiny_model import turn

RULES = Path(__file__).parent.parent / "data_quality" / "rules.py"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def chosen(number: int, answer: str) -> Candidate:
    """A response that rejection sampling chose."""
    question = turn("user", f"what is {number}?")
    return Candidate.model_validate(
        {
            "id": f"p{number}/0",
            "parents": (f"p{number}",),
            "prompt_id": f"p{number}",
            "messages": (turn("system", "Be brief."), question, turn("assistant", answer)),
            "tools": (TOOL,),
            "seed": 0,
            "finish_reason": "stop",
            "num_tokens": 3,
            "model": "round-0/policy",
            "capability": "math",
            "score": 1.0,
            "prompt": [question.to_json()],
            "round": 1,
        }
    )


def test_a_dropped_row_can_be_traced(tmp_path: Path) -> None:
    held_out = Prompt(id="h", prompt=(turn("user", "what is 2?"),), capability="math")
    twin = Example(
        id="twin",
        parents=("book",),
        messages=(turn("user", "what is 1?"), turn("assistant", "one")),
        capability="math",
    )
    tables: dict[str, list[Any]] = {
        "human/train": [twin],
        "heldout/dev": [held_out],
        "heldout/test": [],
        "score/earlier": [],
        "chosen/selected": [chosen(1, "one"), chosen(2, "two"), chosen(3, "three")],
    }
    for name, rows in tables.items():
        write_rows(tmp_path / f"{name}.jsonl", rows)
    folders = {name: tmp_path / name for name in ("heldout", "score", "chosen")}
    paths = {**folders, "human:0": tmp_path / "human", "rules": RULES}
    order = ("clean", "exact_duplicates", "decontaminate", "mix")
    pipeline = Pipeline(order=order, clean=Clean(rules=("drop_empty",)))
    settings = CurateStage(round=1, seed=0, pipeline=pipeline, mix={"math": 1.0})
    (tmp_path / "out").mkdir()
    out = Output(tmp_path / "out", lambda done, total: None)
    machine = tmp_path / "machine.json"
    run(Inputs(paths, Workspace(tmp_path), Resources(), machine), settings, out)
    out.close()
    train, dropped = (
        {row["id"]: row for row in map(json.loads, (out.path / f"{name}.jsonl").open())}
        for name in ("train", "dropped")
    )
    assert set(train) == {"twin", "example/p3/0"}
    assert train["example/p3/0"]["tools"] == [TOOL]
    assert set(dropped) == {"example/p1/0", "example/p2/0"}
    for number, answer in ((1, "one"), (2, "two")):
        row = dropped[f"example/p{number}/0"]
        assert row["parents"] == [f"p{number}/0"]
        assert [one["content"] for one in row["messages"]] == [f"what is {number}?", answer]
