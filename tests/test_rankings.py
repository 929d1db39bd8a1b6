"""The reward model's rankings: layouts give the same scores, losses and gradients; bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM

from posttrain.errors import BadInput, GuardFailed
from posttrain.models.chat import load_tokenizer
from posttrain.rows import Preference
from posttrain.scoring import Dialog, RewardScorer
from posttrain.settings.base import parse
from posttrain.settings.resources import Resources
from posttrain.settings.training import Lora, RewardSettings
from posttrain.training.job import Job
from posttrain.training.rankings import Collator, pick_layout
from posttrain.training.reward import Reward, reward_trainer, train_reward
from posttrain.training.running import own_process_state
from posttrain.training.tokens import TokenRow, reward_tokens
from tests.tiny_model import TEMPLATE, WORDS, make_model, make_tokenizer, turn

LAYOUTS = ("rows", "packed", "prefix")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model."""
    return make_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path) -> Iterator[None]:
    """Trainers change the process they live in."""
    with own_process_state(job(tmp_path)):
        yield


def ranked(count: int) -> list[Preference]:
    """Rankings of two to four responses; prompts and responses of all lengths."""
    rows = []
    for i in range(count):
        word = WORDS[i % len(WORDS)]
        prompt = [turn("user", f"what colour is {word}" + f" {word}" * (5 * i % 17))]
        texts = [
            f"good {word}" + " it" * ((3 * i + 7 * k) % 11) + f" {k}" for k in range(2 + i % 3)
        ]
        responses = [[turn("assistant", text)] for text in texts]
        rows.append(
            Preference.model_validate(
                {"id": f"r{i}", "prompt": prompt, "ranked": responses, "strength": "better"}
            )
        )
    return rows


def job(work: Path, precision: Any = "float32", **resources: Any) -> Job:
    """A training on the CPU."""
    return Job(work, Resources.model_validate({"device": "cpu", **resources}), precision, TEMPLATE)


def settings(**changes: Any) -> RewardSettings:
    """Short settings."""
    return RewardSettings.model_validate(
        {"batch_size": 8, "learning_rate": 1e-3, "max_length": 128, **changes}
    )


def tokens(base: Path, rows: list[Preference]) -> list[TokenRow]:
    """Rankings as tokens."""
    return reward_tokens(load_tokenizer(base, TEMPLATE), rows, 128)[0]


def trainer(base: Path, rows: list[TokenRow], work: Job, **changes: Any) -> Reward:
    """A trainer of rankings."""
    return reward_trainer(base, load_tokenizer(base, TEMPLATE), rows, settings(**changes), work)


def batch_of(trainer: Reward) -> Any:
    """All rows of a trainer."""
    rows = [dict(row) for row in trainer.train_dataset]
    return trainer._prepare_inputs(trainer.data_collator(rows))


def scores_of(trainer: Reward) -> torch.Tensor:
    """Scores of all responses of a trainer's rows, without gradients."""
    batch = batch_of(trainer)
    model: Any = trainer.model
    inputs = {k: v for k, v in batch.items() if k not in ("better", "worse", "num_tokens")}
    with torch.no_grad(), trainer.accelerator.autocast():
        scores: torch.Tensor = model.eval()(**inputs)
    return scores.float()


def gradients_of(trainer: Reward) -> torch.Tensor:
    """Gradients of the loss of all rows, of all trained weights."""
    model: Any = trainer.model.train()
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(model, batch_of(trainer))
    loss.backward()
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["packed", "prefix"])
def test_layouts_give_the_scores_and_gradients_of_rows(
    layout: str, attention: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = {"dtype": "float32", "attn_implementation": attention}
    monkeypatch.setattr("posttrain.training.arguments._loading", lambda *_: loading)
    rows = tokens(base, ranked(13))
    for part in (rows[:1], rows[3:4] * 3, rows):
        one, other = (trainer(base, part, job(tmp_path), layout=x) for x in ("rows", layout))
        assert (scores_of(one) - scores_of(other)).abs().max() < 1e-5
        expected, found = gradients_of(one), gradients_of(other)
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_a_plain_score_of_every_response_is_the_scorers(base: Path, tmp_path: Path) -> None:
    rows = ranked(7)
    train_reward(base, rows, tmp_path / "model", settings(), job(tmp_path / "work"))
    scorer = RewardScorer(tmp_path / "model", TEMPLATE)
    dialogs = [Dialog((*row.prompt, *response)) for row in rows for response in row.ranking()]
    expected = torch.tensor(scorer.score(dialogs))
    for layout in LAYOUTS:
        own = trainer(tmp_path / "model", tokens(base, rows), job(tmp_path), layout=layout)
        assert (scores_of(own) - expected).abs().max() < 1e-5


def test_the_loss_is_the_mean_over_all_pairs(base: Path, tmp_path: Path) -> None:
    rows = ranked(6)
    own = trainer(base, tokens(base, rows), job(tmp_path), layout="packed")
    scores, losses, start = scores_of(own).tolist(), [], 0
    for row in rows:
        size = len(row.ranking())
        mine = torch.tensor(scores[start : start + size])
        for better in range(size):
            for worse in range(better + 1, size):
                losses.append(torch.nn.functional.softplus(mine[worse] - mine[better]))
        start += size
    loss = own.compute_loss(own.model, batch_of(own))
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-6)
    assert own._metrics["train"]["accuracy"] == [float(x < 0.6931471) for x in losses]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["lora", "bfloat16", "checkpointing"])
def test_layouts_agree_in_every_kind_of_training(
    case: str, layout: str, base: Path, tmp_path: Path
) -> None:
    if case == "checkpointing" and layout == "prefix":
        return
    rows = tokens(base, ranked(6))
    changes = {"lora": Lora(rank=2).model_dump()} if case == "lora" else {}
    work = job(
        tmp_path,
        "bfloat16" if case == "bfloat16" else "float32",
        gradient_checkpointing=case == "checkpointing",
    )
    found = {}
    for name, kind, own in (("rows", job(tmp_path), "rows"), ("other", work, layout)):
        with own_process_state(kind):
            one = trainer(base, rows, kind, layout=own, **changes)
            found[name] = scores_of(one), gradients_of(one)
    limit = 2e-2 if case == "bfloat16" else 1e-5
    (expected, slopes), (scores, own_slopes) = found["rows"], found["other"]
    assert (scores - expected).abs().max() < limit
    assert own_slopes.shape == slopes.shape
    assert (own_slopes - slopes).norm() < 10 * limit * slopes.norm()


def collator(**changes: Any) -> Collator:
    """A packed one."""
    return replace(Collator("packed", pad_token_id=5, isolate=True, seed=0), **changes)


def test_the_order_of_responses_depends_on_seed_row_and_epoch_alone(base: Path) -> None:
    rows = tokens(base, ranked(40))
    orders = [collator(epoch=e)(rows)["input_ids"].tolist() for e in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert collator(seed=1)(rows)["input_ids"].tolist() != orders[0]
    alone = [collator(epoch=1)([row])["input_ids"][0].tolist() for row in rows]
    for row, ids in zip(rows, alone, strict=True):
        assert ids[: len(row["prompt_ids"])] == row["prompt_ids"].tolist()
        assert sorted(ids) == sorted([*row["prompt_ids"].tolist(), *row["response_ids"].tolist()])
    firsts = [ids[len(r["prompt_ids"])] for r, ids in zip(rows, alone, strict=True)]
    assert len(firsts) == 40


def test_isolated_scores_do_not_change_with_the_order_and_others_do(
    base: Path, tmp_path: Path
) -> None:
    rows = tokens(base, ranked(8))
    for isolate in (True, False):
        own = trainer(base, rows, job(tmp_path), layout="packed", isolate=isolate)
        with torch.no_grad():
            own.model.score.weight.mul_(20)
        scores = []
        for epoch in range(3):
            own.data_collator.collate.epoch = epoch
            scores.append(scores_of(own))
        gap = max((one - scores[0]).abs().max().item() for one in scores[1:])
        assert gap < 1e-5 if isolate else gap > 1e-2


def test_a_training_shuffles_anew_in_every_epoch(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    order = Collator.order

    def watched(self: Collator, ranking: Any) -> list[int]:
        seen.append(self.epoch)
        return order(self, ranking)

    monkeypatch.setattr(Collator, "order", watched)
    rows = tokens(base, ranked(16))
    own = trainer(base, rows, job(tmp_path / "w"), layout="packed", epochs=2)
    seen.clear()
    own.train()
    assert seen == [0] * 16 + [1] * 16


@given(st.integers(1, 2000), st.lists(st.integers(1, 600), min_size=2, max_size=4))
def test_auto_shares_long_prompts_alone(prompt: int, lengths: list[int]) -> None:
    rows = [{"prompt_ids": range(prompt), "response_lengths": lengths}]
    picked = pick_layout(rows, hidden_size=128, rankings_per_pass=1)
    if prompt <= 8:
        assert picked == "rows"
    if prompt >= 600:
        assert picked == "packed"


def test_prefix_with_checkpointing_is_refused(base: Path, tmp_path: Path) -> None:
    work = job(tmp_path, gradient_checkpointing=True)
    with pytest.raises(BadInput, match=r"reward\.layout: prefix.*gradient_checkpointing"):
        train_reward(base, ranked(4), tmp_path / "out", settings(layout="prefix"), work)


def test_only_a_packed_row_can_do_without_isolation() -> None:
    with pytest.raises(BadInput, match="isolate: false has all responses in one row"):
        parse(RewardSettings, {"layout": "rows", "isolate": False}, "x")
    assert not parse(RewardSettings, {"layout": "packed", "isolate": False}, "x").isolate


def test_a_model_that_cannot_share_prompts_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        pad_token_id=tokenizer.pad_token_id,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(GuardFailed, match=r"set reward\.layout: rows"):
        train_reward(
            tmp_path / "base", ranked(4), tmp_path / "out", settings(layout="packed"), job(tmp_path)
        )


def test_a_head_of_several_labels_is_refused(base: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    two.mkdir()
    for file in base.iterdir():
        (two / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "score.weight": torch.zeros(2, 32)}, two / "model.safetensors")
    with pytest.raises(BadInput, match="a head of one label; its head has 2"):
        train_reward(two, ranked(4), tmp_path / "out", settings(), job(tmp_path))


@pytest.mark.parametrize("pad", [None, "<|eot_id|>"])
def test_a_tokenizer_without_a_padding_token_is_refused(
    pad: str | None, base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    told = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**told, "pad_token": pad}))
    with pytest.raises(BadInput, match="padding token must exist and differ"):
        train_reward(other, ranked(4), tmp_path / "out", settings(), job(tmp_path))


def test_rankings_that_cannot_be_compared_are_dropped_with_their_reason(base: Path) -> None:
    rows = ranked(3)
    response = rows[1].ranking()[0]
    bad = [
        rows[0].model_copy(update={"id": "one", "ranked": (response,)}),
        rows[0].model_copy(update={"id": "same", "ranked": (response, response)}),
        rows[0].model_copy(
            update={"id": "long", "ranked": (response, (turn("assistant", "it " * 200),))}
        ),
    ]
    tokenizer = load_tokenizer(base, TEMPLATE)
    kept, dropped = reward_tokens(tokenizer, [*rows, *bad], 128)
    assert len(kept) == 3
    assert dropped == [
        ("one", "a ranking of one response"),
        ("same", "two responses render to the same tokens"),
        ("long", "longer than 128 tokens"),
    ]
    whole = max(len(row["prompt_ids"]) + len(row["response_ids"]) for row in kept)
    _, dropped = reward_tokens(tokenizer, rows, whole - 1, isolate=False)
    assert [reason for _, reason in dropped] == [
        f"prompt and responses together are longer than {whole - 1} tokens"
    ]


def test_a_loss_that_is_no_number_stops(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Reward.compute_loss
    monkeypatch.setattr(Reward, "compute_loss", lambda *a, **k: loss(*a, **k) * float("nan"))
    with pytest.raises(GuardFailed, match="the loss is nan at step 1"):
        train_reward(base, ranked(8), tmp_path / "out", settings(), job(tmp_path / "work"))
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {root!r})
from tests.test_rankings import job, ranked, tokens, trainer
base, out, layout, size = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
rows = tokens(base, ranked(32))
torch.set_num_threads(1)
own = trainer(base, rows, job(out / "work"), layout=layout, batch_size=size, epochs=2)
own.train()
if own.accelerator.is_main_process:
    torch.save(own.accelerator.unwrap_model(own.model).state_dict(), out / "weights.pt")
    log = [e for e in own.state.log_history if "margin" in e]
    torch.save(log, out / "log.pt")
own.end()
"""


@pytest.mark.parametrize("layout", ["packed", "prefix"])
def test_two_processes_train_what_one_trains(layout: str, base: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["ACCELERATE_USE_CPU"] = "true"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, how, size in (("one", [], 8), ("two", launch, 8)):
        (tmp_path / name).mkdir()
        command = [sys.executable, *how, str(script), str(base), str(tmp_path / name), layout]
        ended = subprocess.run(
            [*command, str(size)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert (tmp_path / name / "log.pt").exists(), ended.stderr[-3000:]
    one, two = (torch.load(tmp_path / name / "weights.pt") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    logs = [torch.load(tmp_path / name / "log.pt") for name in ("one", "two")]
    for first, second in zip(*logs, strict=True):
        for name in ("loss", "accuracy", "margin", "mean_reward", "num_tokens"):
            assert first[name] == pytest.approx(second[name], abs=1e-4)
