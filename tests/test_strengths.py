"""Which strengths the reward model and DPO train on."""

import json
from pathlib import Path

from posttrain.preference_rows import strong_preferences
from posttrain.rows import Preference, Strength
from posttrain.settings.resources import Resources
from posttrain.settings.stages import DpoStage, RewardStage
from posttrain.settings.training import DpoSettings, RewardSettings
from posttrain.stages import dpo, reward
from posttrain.steps.output import Inputs, Output
from posttrain.tables import write_rows
from posttrain.workspace import Workspace
from tests.tiny_model import TEMPLATE, make_model, preferences


def of_every_strength(count: int) -> list[Preference]:
    return [
        row.model_copy(update={"strength": list(Strength)[n % 4]})
        for n, row in enumerate(preferences(count))
    ]


def test_both_trainings_honour_the_weakest_strength(tmp_path: Path) -> None:
    write_rows(tmp_path / "preferences/train.jsonl", of_every_strength(16))
    base = make_model(tmp_path / "base")
    make_model(tmp_path / "sft/model")
    paths = {
        "preferences": tmp_path / "preferences",
        "preferences:1": tmp_path / "preferences",
        "base": base,
        "sft": tmp_path / "sft",
        "template": TEMPLATE,
    }
    inputs = Inputs(paths, Workspace(tmp_path), Resources(device="cpu"), tmp_path / "machine.json")
    short = {"max_steps": 1, "batch_size": 4, "max_length": 128}
    for number, weakest in enumerate((Strength.SLIGHTLY, Strength.SIGNIFICANTLY)):
        out = Output(tmp_path / f"rm{number}", lambda done, total: None)
        stage = RewardStage(reward=RewardSettings.model_validate(short), min_strength=weakest)
        reward.run(inputs, stage, out)
        books = [out.close()["funnel"][0]]
        out = Output(tmp_path / f"dpo{number}", lambda done, total: None)
        dpo.run(inputs, DpoStage(dpo=DpoSettings(**short), min_strength=weakest), out)
        books.append(out.close()["funnel"][0])
        for part in books:
            assert part["rows_out"] == 16 - 4 * weakest.level
            assert part["dropped"] == {"too weak": 4 * weakest.level}


def test_weaker_preferences_stay_in_the_books(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", of_every_strength(4))
    (tmp_path / "out").mkdir()
    out = Output(tmp_path / "out", lambda done, total: None)
    strong = strong_preferences([tmp_path], Strength.BETTER, out)
    assert [row.id for row in strong] == ["p2", "p3"]
    out.close()
    dropped = [json.loads(line) for line in (out.path / "dropped.jsonl").open()]
    assert [row["strength"] for row in dropped] == ["marginally better", "slightly better"]
