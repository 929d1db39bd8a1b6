"""vLLM's pooling gives the scores that transformers gives.

pytest tests/test_scoring_vllm.py
"""

import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from posttrain.errors import BadInput, GuardFailed
from posttrain.models.chat import load_tokenizer
from posttrain.models.files import context_length
from posttrain.scoring import Dialog, RewardScorer
from posttrain.settings.engines import VllmEngineSettings
from posttrain.settings.plan import Scoring
from posttrain.settings.resources import Resources
from posttrain.settings.stages import ScoreStage
from posttrain.stages import score
from posttrain.steps.output import Inputs, Output
from posttrain.tables import json_lines, write_rows
from posttrain.workspace import Workspace
from tests.small_round import posttrain
from tests.tiny_model import turn

BASE = Path(__file__).parents[1] / "rounds/tiny/base"
SETTINGS = VllmEngineSettings(type="vllm", dtype="float32")

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true",
    reason="vllm is not installed",
)


def dialogs(count: int) -> list[Dialog]:
    """Dialogs of very different lengths."""
    rng = random.Random(0)
    words = "red blue 12 7 lemon stone sort the letters of a word".split()

    def text(longest: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, longest)))

    return [
        Dialog((turn("user", text(12)), turn("assistant", text(30))), id=f"d{i}")
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a random head of one label."""
    folder = tmp_path_factory.mktemp("models") / "reward"
    tokenizer = load_tokenizer(BASE)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        BASE, num_labels=1, dtype=torch.float32
    )
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vllm(reward: Path) -> Iterator[RewardScorer]:
    opened = RewardScorer(reward, None, vllm=SETTINGS)
    yield opened
    opened.close()


@needs_vllm
def test_both_engines_give_the_same_scores_in_any_order(reward: Path, vllm: RewardScorer) -> None:
    rows = dialogs(64)
    expected = RewardScorer(reward, None).score(rows)
    assert len(set(expected)) > 50
    assert vllm.score(rows) == pytest.approx(expected, abs=1e-5)
    assert vllm.score(rows[::-1])[::-1] == pytest.approx(expected, abs=1e-5)
    assert vllm.score(rows[:1]) == pytest.approx(expected[:1], abs=1e-5)


@needs_vllm
def test_a_row_as_long_as_the_context_is_scored_and_a_longer_one_is_not(
    reward: Path, vllm: RewardScorer
) -> None:
    limit = context_length(reward)
    rows = [[0, *[7] * (limit - 2), 4], [0, *[7] * (limit - 1), 4], [0, 9, 4]]
    found = vllm.score_tokens(rows, ["whole", "longer", "short"])
    expected = RewardScorer(reward, None).score_tokens(rows, ["whole", "longer", "short"])
    assert found[1] is None is expected[1]
    assert [found[0], found[2]] == pytest.approx([expected[0], expected[2]], abs=1e-5)


@needs_vllm
def test_the_command_scores_with_vllm_and_stops_at_nan(reward: Path, tmp_path: Path) -> None:
    rows = dialogs(12)
    path, out = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
    write_rows(path, [{"id": d.id, "messages": [m.to_json() for m in d.messages]} for d in rows])
    ended = posttrain("score", str(reward), str(path), "--out", str(out), "--engine", "vllm")
    assert (ended.code, ended.err) == (0, "12 of 12 rows scored\n")
    found = list(json_lines(out))
    assert [row["id"] for row in found] == [d.id for d in rows]
    expected = RewardScorer(reward, None).score(rows)
    assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-5)

    weights = load_file(reward / "model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], float("nan"))
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for file in reward.iterdir():
        (spoilt / file.name).write_bytes(file.read_bytes())
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    scorer = RewardScorer(spoilt, None, vllm=SETTINGS)
    with pytest.raises(GuardFailed, match="d0 scores nan"):
        scorer.score(rows)
    scorer.close()
    with pytest.raises(BadInput, match="closed"):
        scorer.score(rows)


@needs_vllm
def test_the_score_step_of_a_round_scores_with_vllm(reward: Path, tmp_path: Path) -> None:
    rows = dialogs(6)
    responses = [
        {
            "id": f"{row.id}/0",
            "prompt_id": row.id,
            "parents": [row.id],
            "messages": [message.to_json() for message in row.messages],
            "seed": 0,
            "finish_reason": "stop",
            "num_tokens": 1,
            "model": "base",
        }
        for row in rows
    ]
    write_rows(tmp_path / "sample/responses.jsonl", responses)
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm/model").symlink_to(reward)
    (tmp_path / "out").mkdir()
    inputs = Inputs(
        {"sample": tmp_path / "sample", "reward": tmp_path / "rm"},
        Workspace(tmp_path),
        Resources(device="cpu"),
        tmp_path / "machine.json",
    )
    out = Output(tmp_path / "out", lambda done, total: None)
    score.run(inputs, ScoreStage(scoring=Scoring(vllm=SETTINGS)), out)
    found = {row["id"]: row["score"] for row in json_lines(tmp_path / "out/responses.jsonl")}
    expected = RewardScorer(reward, None).score(rows)
    assert list(found) == [f"{row.id}/0" for row in rows]
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)


def test_an_interpreter_without_vllm_is_bad_input(reward: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    # No site-packages: the interpreter runs, and has nothing installed.
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    write_rows(tmp_path / "rows.jsonl", [{"id": "a", "messages": [
        {"role": "user", "content": "7"}, {"role": "assistant", "content": "8"}]}])  # fmt: skip
    words = ["--out", str(tmp_path / "out.jsonl"), "--engine", "vllm", "--python", str(python)]
    ended = posttrain("score", str(reward), str(tmp_path / "rows.jsonl"), *words)
    assert ended.code == 2
    assert "has no vllm: install it there" in ended.one_line()
