"""Scores of a real tiny reward model: the same whatever the batch."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.averaging import average_models
from posttrain.errors import BadInput, GuardFailed
from posttrain.models.chat import load_tokenizer, render_dialog
from posttrain.rows import Message
from posttrain.scoring import RewardScorer
from posttrain.settings.plan import Resources
from posttrain.settings.training import RewardSettings
from posttrain.training.job import Job
from posttrain.training.reward import train_reward
from tests.tiny_model import TEMPLATE, examples, make_model, preferences, turn


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that likes answers with `good` in them."""
    root = tmp_path_factory.mktemp("reward")
    settings = RewardSettings(batch_size=8, learning_rate=3e-3, epochs=4, max_length=128)
    job = Job(root / "work", Resources(device="cpu"), "float32", TEMPLATE)
    train_reward(make_model(root / "base"), preferences(60), root / "model", settings, job)
    return root / "model"


DIALOGS: list[tuple[Message, ...]] = [e.messages for e in examples(24)]


def test_scores_do_not_depend_on_batch_order_or_neighbours(reward: Path) -> None:
    alone = [RewardScorer(reward, TEMPLATE).score([dialog])[0] for dialog in DIALOGS[:6]]
    all_at_once = RewardScorer(reward, TEMPLATE).score(DIALOGS)
    small = RewardScorer(reward, TEMPLATE, batch_tokens=100).score(DIALOGS)
    order = list(range(len(DIALOGS)))
    random.Random(0).shuffle(order)
    shuffled = RewardScorer(reward, TEMPLATE, batch_tokens=300).score([DIALOGS[i] for i in order])
    assert all_at_once[:6] == pytest.approx(alone, abs=1e-5)
    assert small == pytest.approx(all_at_once, abs=1e-5)
    assert [all_at_once[i] for i in order] == pytest.approx(shuffled, abs=1e-5)
    assert len(set(all_at_once)) > 10


def test_the_score_is_read_at_the_last_token(reward: Path) -> None:
    scorer = RewardScorer(reward, TEMPLATE)
    ids = render_dialog(load_tokenizer(reward, TEMPLATE), DIALOGS[0]).input_ids
    with torch.inference_mode():
        states = scorer._model.model(torch.tensor([ids])).last_hidden_state
        expected = scorer._model.score(states)[0, -1, 0].item()
    assert scorer.score(DIALOGS[:1])[0] == pytest.approx(expected, abs=1e-5)


def test_a_trained_model_prefers_the_chosen_response(reward: Path) -> None:
    rows = preferences(30)
    scorer = RewardScorer(reward, TEMPLATE)
    best = scorer.score([(*r.prompt, *r.ranking()[0]) for r in rows])
    worst = scorer.score([(*r.prompt, *r.ranking()[-1]) for r in rows])
    assert sum(b > w for b, w in zip(best, worst, strict=True)) > 27


def test_an_averaged_reward_model_keeps_its_head(reward: Path, tmp_path: Path) -> None:
    average_models([reward, reward], tmp_path / "out")
    one, two = (RewardScorer(f, TEMPLATE).score(DIALOGS) for f in (reward, tmp_path / "out"))
    assert one == two


def test_a_dialog_past_the_context_is_named(reward: Path) -> None:
    long = (turn("user", "red?"), turn("assistant", "it " * 400))
    with pytest.raises(BadInput, match="dialog 1 has"):
        RewardScorer(reward, TEMPLATE).score([DIALOGS[0], long])


def test_a_model_without_one_label_is_refused(reward: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no score head"):
        RewardScorer(make_model(tmp_path / "causal"), TEMPLATE)
    two = tmp_path / "two"
    two.mkdir()
    for file in reward.iterdir():
        (two / file.name).write_bytes(file.read_bytes())
    weights = load_file(two / "model.safetensors")
    weights["score.weight"] = torch.cat([weights["score.weight"]] * 2)
    save_file(weights, two / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((two / "config.json").read_text())
    del config["id2label"]
    (two / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="a head of 2 labels"):
        RewardScorer(two, TEMPLATE)


def test_a_score_that_is_no_number_is_named(reward: Path) -> None:
    scorer = RewardScorer(reward, TEMPLATE)
    with torch.no_grad():
        scorer._model.score.weight.fill_(float("nan"))
    with pytest.raises(GuardFailed, match="dialog 0 scores nan"):
        scorer.score(DIALOGS[:2])
