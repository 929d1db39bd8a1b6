"""Scores of a real tiny reward model: the same whatever the batch."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from posttrain.averaging import average_models
from posttrain.errors import BadInput, GuardFailed
from posttrain.models.chat import dialog_ids, load_tokenizer, render_dialog
from posttrain.models.devices import pick_device
from posttrain.rows import Candidate, Message, Strength
from posttrain.scoring import Dialog, RewardScorer
from posttrain.settings.resources import Resources
from posttrain.settings.stages import MeasureRewardStage, ScoreStage
from posttrain.settings.training import RewardSettings
from posttrain.stages import measure_reward, score
from posttrain.steps.output import Inputs, Output
from posttrain.tables import json_lines, write_rows
from posttrain.training.job import Job
from posttrain.training.reward import train_reward
from posttrain.workspace import Workspace
from tests.small_round import Ended, posttrain
from tests.tiny_model import (
    TEMPLATE,
    examples,
    make_model,
    preferences,
    turn,
    with_other_template,
)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that likes answers with `good` in them."""
    root = tmp_path_factory.mktemp("reward")
    settings = RewardSettings(batch_size=8, learning_rate=3e-3, epochs=4, max_length=128)
    job = Job(root / "work", Resources(device="cpu"), "float32", TEMPLATE)
    train_reward(make_model(root / "base"), preferences(60), root / "model", settings, job)
    return root / "model"


DIALOGS = [Dialog(e.messages) for e in examples(24)]
CUT = (turn("user", "red?"), turn("assistant", "it " * 400))


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


def copied(reward: Path, folder: Path) -> Path:
    """A copy of the reward model that a test may spoil."""
    shutil.copytree(reward, folder)
    return folder


@pytest.mark.parametrize("side", ["left", "right"])
def test_random_batches_padded_on_either_side_give_the_same_scores(
    reward: Path, tmp_path: Path, side: str
) -> None:
    """Beside a plain forward pass, and with a tokenizer that says where to pad."""
    tokenizer = load_tokenizer(reward, TEMPLATE)
    tokenizer.padding_side = side
    tokenizer.save_pretrained(copied(reward, tmp_path / "padded"))
    expected = RewardScorer(tmp_path / "padded", TEMPLATE).score(DIALOGS)
    model = AutoModelForSequenceClassification.from_pretrained(reward, dtype=torch.float32).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    rng = random.Random(side)
    for size in (1, 2, 3, 5, 8, 13, 24):
        part = rng.sample(range(len(DIALOGS)), size)
        ids = [dialog_ids(tokenizer, DIALOGS[i].messages) for i in part]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with torch.inference_mode():
            plain = model(**batch).logits[:, 0].tolist()
        scores = RewardScorer(reward, TEMPLATE, batch_tokens=rng.randint(1, 2000))
        assert scores.score([DIALOGS[i] for i in part]) == pytest.approx(plain, abs=1e-5)
        assert [expected[i] for i in part] == pytest.approx(plain, abs=1e-5)


def test_what_is_scored_is_rendered_as_in_training(reward: Path) -> None:
    tokenizer = load_tokenizer(reward, TEMPLATE)
    tools = ({"name": "search", "parameters": {}},)
    for dialog in DIALOGS[:6]:
        for more in (None, tools):
            trained = render_dialog(tokenizer, dialog.messages, more).input_ids
            assert tuple(dialog_ids(tokenizer, dialog.messages, more)) == trained


@pytest.mark.parametrize("pad", [None, "<|eot_id|>"])
def test_a_tokenizer_without_a_padding_token_of_its_own_is_refused(
    reward: Path, tmp_path: Path, pad: str | None
) -> None:
    folder = copied(reward, tmp_path / "spoilt")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = pad
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="padding token must exist and differ") as caught:
        RewardScorer(folder, TEMPLATE)
    assert "\n" not in str(caught.value)


def test_the_score_is_read_at_the_last_token(reward: Path) -> None:
    scorer = RewardScorer(reward, TEMPLATE)
    ids = render_dialog(load_tokenizer(reward, TEMPLATE), DIALOGS[0].messages).input_ids
    with torch.inference_mode():
        states = scorer._forward.model.model(torch.tensor([ids])).last_hidden_state
        expected = scorer._forward.model.score(states)[0, -1, 0].item()
    assert scorer.score(DIALOGS[:1])[0] == pytest.approx(expected, abs=1e-5)


def test_a_trained_model_prefers_the_chosen_response(reward: Path) -> None:
    rows = preferences(30)
    scorer = RewardScorer(reward, TEMPLATE)
    best = scorer.score([Dialog((*r.prompt, *r.ranking()[0])) for r in rows])
    worst = scorer.score([Dialog((*r.prompt, *r.ranking()[-1])) for r in rows])
    pairs = zip(best, worst, strict=True)
    assert sum(b is not None and w is not None and b > w for b, w in pairs) > 27


def test_an_averaged_reward_model_keeps_its_head(reward: Path, tmp_path: Path) -> None:
    average_models([reward, reward], tmp_path / "out")
    one, two = (RewardScorer(f, TEMPLATE).score(DIALOGS) for f in (reward, tmp_path / "out"))
    assert one == two


def test_a_dialog_past_the_context_has_no_score_and_moves_no_other(reward: Path) -> None:
    scorer = RewardScorer(reward, TEMPLATE)
    plain = scorer.score(DIALOGS[:2])
    assert scorer.score([DIALOGS[0], Dialog(CUT), DIALOGS[1]]) == [plain[0], None, plain[1]]
    assert scorer.score([Dialog(CUT)]) == [None]


def test_a_model_without_one_label_is_refused(reward: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no score head"):
        RewardScorer(make_model(tmp_path / "causal"), TEMPLATE)
    two = copied(reward, tmp_path / "two")
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
        scorer._forward.model.score.weight.fill_(float("nan"))
    with pytest.raises(GuardFailed, match="dialog 0 scores nan"):
        scorer.score(DIALOGS[:2])
    with pytest.raises(GuardFailed, match="p7/3 scores nan"):
        scorer.score([DIALOGS[0]._replace(id="p7/3")])


def candidate(number: int, messages: tuple[Message, ...], **more: Any) -> Candidate:
    """A response as the sampling step writes it."""
    fixed = {"seed": 0, "finish_reason": "stop", "num_tokens": 3, "model": "base"}
    place = {"id": f"p{number}/0", "prompt_id": f"p{number}", "parents": (f"p{number}",)}
    return Candidate.model_validate({**fixed, **place, "messages": messages, **more})


@pytest.fixture
def inputs(reward: Path, tmp_path: Path) -> Inputs:
    """What the score step reads: 24 responses and one too long, and one round's choices."""
    rows = [candidate(i, tuple(dialog.messages)) for i, dialog in enumerate(DIALOGS)]
    write_rows(tmp_path / "sample/responses.jsonl", [*rows, candidate(24, CUT)])
    chosen = [row.model_copy(update={"round": 1, "score": 9.0}) for row in rows[:3]]
    long = candidate(24, CUT, round=1, score=9.0)
    write_rows(tmp_path / "select/selected.jsonl", [*chosen, long])
    (tmp_path / "out").mkdir()
    paths = {
        "sample": tmp_path / "sample",
        "chosen:1": tmp_path / "select",
        "reward": reward.parent,
        "template": TEMPLATE,
    }
    resources = Resources(device="cpu")
    return Inputs(paths, Workspace(tmp_path), resources, tmp_path / "machine.json")


def read(out: Output, name: str) -> list[dict[str, Any]]:
    """A published table."""
    return [json.loads(line) for line in (out.path / f"{name}.jsonl").open()]


def test_the_score_step_drops_and_counts_what_does_not_fit(inputs: Inputs, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = Output(tmp_path / "out", lambda done, total: told.append((done, total)))
    score.run(inputs, ScoreStage(), out)
    books = out.close()
    (part,) = books["funnel"]
    assert part["dropped"] == {"too long to score": 2}
    assert part["rows_in"] - 2 == part["rows_out"] == 27
    assert told[-1] == (29, 29)
    responses, earlier = read(out, "responses"), read(out, "earlier")
    expected = RewardScorer(inputs["reward"] / "model", TEMPLATE).score(DIALOGS)
    assert [row["score"] for row in responses] == pytest.approx(expected, abs=1e-5)
    assert [row["id"] for row in earlier] == [f"round-1/p{i}/0" for i in range(3)]
    assert [row["score"] for row in earlier] == pytest.approx(expected[:3], abs=1e-5)
    dropped = {row["id"]: row["parents"] for row in read(out, "dropped")}
    assert dropped == {"p24/0": ["p24"], "round-1/p24/0": ["p24/0"]}


def test_a_score_that_depends_on_its_batch_is_named(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_tokens = RewardScorer.score_tokens

    def swayed(self: RewardScorer, rows: list[list[int]], names: list[str]) -> list[float | None]:
        scores = score_tokens(self, rows, names)
        return [None if s is None else s + 0.001 * len(rows) for s in scores]

    monkeypatch.setattr(RewardScorer, "score_tokens", swayed)
    with pytest.raises(GuardFailed, match=r"p0/0 scores .* in its batch and .* alone"):
        score.run(inputs, ScoreStage(), Output(tmp_path / "out", lambda done, total: None))


def test_accuracy_leaves_out_and_counts_pairs_that_do_not_fit(
    inputs: Inputs, tmp_path: Path
) -> None:
    pairs = preferences(8)
    long = {"rejected": (turn("assistant", "it " * 400),)}
    write_rows(tmp_path / "pairs/dev.jsonl", [*pairs[1:], pairs[0].model_copy(update=long)])
    write_rows(tmp_path / "pairs/test.jsonl", pairs)
    out = Output(tmp_path / "out", lambda done, total: None)
    paths = {**inputs.paths, "preferences:1": tmp_path / "pairs"}
    measure_reward.run(
        replace(inputs, paths=paths), MeasureRewardStage(min_strength=Strength.BETTER), out
    )
    accuracy = json.loads((out.path / "accuracy.json").read_text())
    assert (accuracy["dev"]["all"]["num"], accuracy["test"]["all"]["num"]) == (7, 8)
    funnel = [
        (part["rows_in"], part["rows_out"], part["dropped"]) for part in out.close()["funnel"]
    ]
    assert funnel == [(8, 7, {"too long to score": 1}), (8, 8, {})]
    assert [row["id"] for row in read(out, "dropped")] == ["p0"]


def scored_by_command(reward: Path, rows: Path, *more: str) -> tuple[Ended, Path]:
    """`posttrain score`, and the file it was to write."""
    out = rows.parent / "scores.jsonl"
    words = [str(reward), str(rows), "--out", str(out), "--device", "cpu", *more]
    return posttrain("score", *words), out


def test_score_reads_sampled_responses_and_keeps_their_order(reward: Path, tmp_path: Path) -> None:
    rows = [candidate(i, tuple(dialog.messages)) for i, dialog in enumerate(DIALOGS)]
    write_rows(tmp_path / "responses.jsonl", rows)
    ended, out = scored_by_command(reward, tmp_path / "responses.jsonl")
    assert (ended.code, ended.out, ended.err) == (0, "", "24 of 24 rows scored\n")
    found = list(json_lines(out))
    assert all(set(row) == {"id", "score"} for row in found)
    assert [row["id"] for row in found] == [row.id for row in rows]
    expected = RewardScorer(reward, None).score(DIALOGS)
    assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-5)
    assert not list(tmp_path.glob("*rejects*"))


def test_score_tells_which_rows_have_no_score_and_why(reward: Path, tmp_path: Path) -> None:
    good = [{"id": i, "messages": [m.to_json() for m in d.messages]} for i, d in enumerate(DIALOGS)]
    long = {"id": "long", "messages": [m.to_json() for m in CUT]}
    asked = {"id": "asked", "messages": good[0]["messages"][:1]}
    lines = [
        *map(json.dumps, [*good[:3], long, asked, good[2]]),
        '{"id": "torn',
        json.dumps(good[3]),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    few, out = scored_by_command(reward, path)
    assert few.code == 2
    assert "3 of 8 rows are malformed, more than the allowed 5% (--reject-share)" in few.one_line()
    assert not out.exists()
    ended, _ = scored_by_command(reward, path, "--reject-share", "0.5")
    rejects = tmp_path / "scores.rejects.jsonl"
    assert ended.err == f"4 of 8 rows scored; 1 too long, 3 malformed: see {rejects}\n"
    assert [row["id"] for row in json_lines(out)] == ["0", "1", "2", "3"]
    told = [(row.get("line", row.get("id")), row["reason"]) for row in json_lines(rejects)]
    assert [where for where, _ in told] == [5, 6, 7, "long"]
    for (_, reason), text in zip(
        told, ("not user", "already used", "JSON", "too long"), strict=True
    ):
        assert text in reason
    write_rows(path, good)
    assert scored_by_command(reward, path)[0].code == 0
    assert not rejects.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gone", "rows.jsonl", "--out", "o.jsonl"], "gone: expected a model folder"),
        (["MODEL", "gone.jsonl", "--out", "o.jsonl"], "gone.jsonl: no such file"),
        (["MODEL", "rows.jsonl", "--out", "rows.jsonl"], "this would overwrite the rows"),
        (["MODEL", "empty.jsonl", "--out", "o.jsonl"], "expected rows to score, it has none"),
        (
            ["MODEL", "rows.jsonl", "--out", "o.jsonl", "--template", "x.jinja"],
            "no such chat templ",
        ),
    ],
)
def test_score_says_in_a_line_what_it_lacks(
    reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [candidate(0, tuple(DIALOGS[0].messages))])
    (tmp_path / "empty.jsonl").write_text("")
    ended = posttrain("score", *[str(reward) if word == "MODEL" else word for word in words])
    assert ended.code == 2
    assert line in ended.one_line()
    assert not (tmp_path / "o.jsonl").exists()


def test_score_refuses_responses_of_another_template(reward: Path, tmp_path: Path) -> None:
    policy = with_other_template(reward, tmp_path / "policy")
    row = candidate(0, tuple(DIALOGS[0].messages)).model_copy(update={"model": str(policy)})
    write_rows(tmp_path / "rows.jsonl", [row])
    ended, out = scored_by_command(reward, tmp_path / "rows.jsonl")
    assert ended.code == 2
    assert "differ in their chat templates" in ended.one_line()
    assert not out.exists()
    template = str(reward / "chat_template.jinja")
    assert scored_by_command(reward, tmp_path / "rows.jsonl", "--template", template)[0].code == 0


def test_score_stops_at_a_score_that_is_no_number(reward: Path, tmp_path: Path) -> None:
    folder = copied(reward, tmp_path / "spoilt")
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [candidate(i, tuple(dialog.messages)) for i, dialog in enumerate(DIALOGS)]
    write_rows(tmp_path / "rows.jsonl", rows)
    ended, out = scored_by_command(folder, tmp_path / "rows.jsonl")
    assert ended.code == 1
    assert "p0/0 scores nan" in ended.one_line()
    assert not out.exists()


def test_the_device_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for present, taken in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert pick_device("auto") == taken
        assert pick_device("cpu") == "cpu"
    assert pick_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="torch sees no CUDA device"):
        pick_device("cuda")
