"""The three trainers on a real tiny model: losses, masks, resume, and what is published."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from posttrain.errors import BadInput, GuardFailed, Preempted
from posttrain.models.chat import load_tokenizer, render_dialog
from posttrain.models.folders import check_model_folder, load_causal, save_model_folder
from posttrain.rows import Document, Example, Preference
from posttrain.settings.pretraining import PretrainSettings
from posttrain.settings.resources import Resources
from posttrain.settings.training import DpoSettings, Lora, RewardSettings, SftSettings
from posttrain.steps import ending
from posttrain.training.checkpoints import newest_complete_checkpoint
from posttrain.training.dpo import Dpo, dpo_trainer, train_dpo
from posttrain.training.job import Job, TrainingReport
from posttrain.training.precision import choose_precision
from posttrain.training.pretrain import train_text
from posttrain.training.references import References
from posttrain.training.reward import train_reward
from posttrain.training.running import own_process_state
from posttrain.training.sft import train_sft
from posttrain.training.tokens import dpo_tokens, reward_tokens, sft_tokens
from tests.tiny_model import (
    TEMPLATE,
    examples,
    make_model,
    preferences,
    reference_dpo_loss,
    turn,
)

COMMON = {"batch_size": 8, "learning_rate": 1e-3, "max_length": 128, "warmup_share": 0.1}
Train = Callable[[Path, Path, Job], TrainingReport]


def reward(layout: str) -> RewardSettings:
    return RewardSettings.model_validate({**COMMON, "epochs": 2, "layout": layout})


def pretraining(**changes: Any) -> PretrainSettings:
    sources = {"a": {"files": ["a"], "share": 0.5}, "b": {"files": ["b"], "share": 0.5}}
    common = {**COMMON, "max_length": 64, "batch_size": 2}
    return PretrainSettings.model_validate({**common, "sources": sources, **changes})


def documents() -> list[Document]:
    """Two sources of texts of many lengths."""
    words = ("red", "blue", "green", "gold")
    return [
        Document(text=" ".join(words[n % 4] for n in range(place % 37 + 3)) + f" {place}", source=s)
        for place in range(60)
        for s in ("a", "b")
    ]


TRAININGS: dict[str, Train] = {
    "sft": lambda base, out, job: train_sft(
        base, examples(42), out, SftSettings.model_validate({**COMMON, "epochs": 2}), job
    ),
    "reward-rows": lambda base, out, job: train_reward(
        base, preferences(30), out, reward("rows"), job
    ),
    "reward-packed": lambda base, out, job: train_reward(
        base, preferences(30), out, reward("packed"), job
    ),
    "pretrain": lambda base, out, job: train_text(base, documents(), out, pretraining(), job),
    "dpo": lambda base, out, job: train_dpo(
        base, preferences(42), out, DpoSettings.model_validate({**COMMON, "epochs": 2}), job
    ),
}


ADAPTERS = {**COMMON, "epochs": 2, "lora": Lora(rank=2, dropout=0.1).model_dump()}
KILLED: dict[str, Train] = {
    **TRAININGS,
    "sft-lora": lambda base, out, job: train_sft(
        base, examples(42), out, SftSettings.model_validate(ADAPTERS), job
    ),
    "reward-lora": lambda base, out, job: train_reward(
        base, preferences(30), out, RewardSettings.model_validate(ADAPTERS), job
    ),
    "dpo-lora": lambda base, out, job: train_dpo(
        base, preferences(42), out, DpoSettings.model_validate(ADAPTERS), job
    ),
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model."""
    return make_model(tmp_path_factory.mktemp("model") / "base")


def job(work: Path, **resources: Any) -> Job:
    """A training on the CPU, in float32."""
    circumstances = Resources.model_validate({"device": "cpu", **resources})
    return Job(work, circumstances, "float32", TEMPLATE)


def sft(**changes: Any) -> SftSettings:
    """Short settings."""
    return SftSettings.model_validate({**COMMON, **changes})


def dpo(**changes: Any) -> DpoSettings:
    """Short settings."""
    return DpoSettings.model_validate({**COMMON, **changes})


def first_batch(trainer: Any) -> Any:
    """All rows of a trainer as one padded batch."""
    rows = [dict(row) for row in trainer.train_dataset]
    return trainer._prepare_inputs(trainer.data_collator(rows))


def perturb(model: torch.nn.Module) -> None:
    """Move a model away from its reference, always in the same way."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator) * 0.02)


def test_dpo_loss_is_the_papers_with_both_masks(base: Path, tmp_path: Path) -> None:
    settings = dpo()
    tokenizer = load_tokenizer(base, TEMPLATE)
    kept, _ = dpo_tokens(tokenizer, preferences(6), 128, mask_format_tokens=True)
    with own_process_state(job(tmp_path)):
        trainer = dpo_trainer(base, tokenizer, kept, settings, job(tmp_path))
        policy: Any = trainer.model
        perturb(policy)
        loss = trainer.compute_loss(policy, first_batch(trainer))
        frozen, moved = (load_causal(base, torch.float64) for _ in range(2))
        moved.load_state_dict(policy.state_dict())
        expected = reference_dpo_loss(moved, frozen, kept, settings)
    assert abs(loss.item() - expected.item()) < 1e-5


def test_dpo_loss_is_the_same_where_pairs_share_rows(base: Path, tmp_path: Path) -> None:
    """Dialogs of many lengths, some of them in one row: the float64 loss of each by itself."""
    words = "red blue green gold small large round flat".split()
    rows = [
        Preference(
            prompt=(turn("user", f"say {n}"),),
            chosen=(turn("assistant", " ".join(words[: 1 + 3 * n % 8])),),
            rejected=(
                turn("assistant", " ".join(words[: 2 + 5 * n % 7]) + " bad" * (1 + 60 * (n == 3))),
            ),
            strength="better",
        )
        for n in range(8)
    ]
    settings = dpo(beta=0.3, nll_weight=0.7)
    tokenizer = load_tokenizer(base, TEMPLATE)
    kept, _ = dpo_tokens(tokenizer, rows, 128, mask_format_tokens=True)
    with own_process_state(job(tmp_path)):
        trainer = dpo_trainer(base, tokenizer, kept, settings, job(tmp_path))
        policy: Any = trainer.model
        perturb(policy)
        batch = first_batch(trainer)
        assert len(batch["input_ids"]) < 2 * len(kept) - 3
        loss = trainer.compute_loss(policy, batch)
        frozen, moved = (load_causal(base, torch.float64) for _ in range(2))
        moved.load_state_dict(policy.state_dict())
        expected = reference_dpo_loss(moved, frozen, kept, settings)
    assert abs(loss.item() - expected.item()) < 1e-5
    tokens = sum(len(row[f"{side}_ids"]) for row in kept for side in ("chosen", "rejected"))
    assert trainer._total_train_tokens == tokens


def kept_sides(kept: list[Any]) -> list[dict[str, dict[str, Any]]]:
    """Ids and targets of each pair's responses."""
    return [
        {s: {at: row[f"{s}_{at}"] for at in ("ids", "target")} for s in ("chosen", "rejected")}
        for row in kept
    ]


def test_without_masks_and_likelihood_it_is_trls_loss(base: Path, tmp_path: Path) -> None:
    settings = dpo(mask_format_tokens=False, nll_weight=0.0)
    tokenizer = load_tokenizer(base, TEMPLATE)
    kept, _ = dpo_tokens(tokenizer, preferences(6), 128, mask_format_tokens=False)
    with own_process_state(job(tmp_path)):
        trainer = dpo_trainer(base, tokenizer, kept, settings, job(tmp_path))
        policy: Any = trainer.model
        perturb(policy)
        batch = first_batch(trainer)
        ours = trainer.compute_loss(policy, dict(batch))
        sides = [row[side] for side in ("chosen", "rejected") for row in kept_sides(kept)]
        theirs = trainer._compute_loss(
            policy,
            {
                **{
                    name: pad_sequence([torch.tensor(one[at]).long() for one in sides], True, fill)
                    for name, at, fill in (
                        ("input_ids", "ids", 5),
                        ("completion_mask", "target", 0),
                    )
                },
                "attention_mask": pad_sequence(
                    [torch.ones(len(one["ids"])) for one in sides], True
                ),
                "ref_chosen_logps": batch["reference_chosen"],
                "ref_rejected_logps": batch["reference_rejected"],
            },
            False,
        )
    assert abs(ours.item() - theirs.item()) < 1e-6


def test_the_reference_is_computed_once_for_pairs_and_masks(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variants share it; other masks, pairs or weights have their own."""
    computed, compute = [], Dpo._compute_references

    def count(self: Any, rows: Any, batch_size: int) -> Any:
        computed.append(len(rows))
        return compute(self, rows, batch_size)

    monkeypatch.setattr(Dpo, "_compute_references", count)

    def train(name: str, start: Path = base, rows: int = 16, **changes: Any) -> bytes:
        own = replace(job(tmp_path / f"{name}-work"), shared=tmp_path / "shared")
        train_dpo(start, preferences(rows), tmp_path / name, dpo(**changes), own)
        return (tmp_path / name / "model.safetensors").read_bytes()

    alone = tmp_path / "alone"
    train_dpo(base, preferences(16), alone, dpo(), job(tmp_path / "alone-work"))
    assert train("a") == (alone / "model.safetensors").read_bytes()
    assert computed == [16, 16]
    found = train("b", data_seed=1)
    assert computed == [16, 16]
    shutil.rmtree(tmp_path / "shared")
    assert train("b-again", data_seed=1) == found
    assert len(computed) == 3
    train("unmasked", mask_format_tokens=False)
    train("fewer", rows=8)
    other = make_model(tmp_path / "other", seed=5)
    train("other-model", start=other)
    assert computed == [16, 16, 16, 16, 8, 16]


def test_two_variants_may_save_the_same_reference_at_once(tmp_path: Path) -> None:
    values = [(-1.5, -2.25)] * 2000
    shared = References(tmp_path / "shared" / "key.json")
    script = (
        "import sys; from pathlib import Path; "
        "from posttrain.training.references import References; "
        "one = References(Path(sys.argv[1])); "
        "[one.save([(-1.5, -2.25)] * 2000) for _ in range(60)]"
    )
    command = [sys.executable, "-c", script, str(shared.file)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert shared.load() == values
    assert [path.name for path in shared.file.parent.iterdir()] == ["key.json"]


def test_masks_leave_the_prompt_out_and_format_tokens_out_of_dpo_alone(base: Path) -> None:
    tokenizer = load_tokenizer(base, TEMPLATE)
    row = preferences(1)[0]
    kept, _ = dpo_tokens(tokenizer, [row], 128, mask_format_tokens=True)
    ids, target, mask = (kept[0][f"chosen_{name}"].tolist() for name in ("ids", "target", "dpo"))
    answer = row.ranking()[0][0].content
    assert tokenizer.decode([t for t, m in zip(ids, mask, strict=True) if m]) == answer
    trained = tokenizer.decode([t for t, m in zip(ids, target, strict=True) if m])
    assert trained == answer + "<|eot_id|>"


def test_sft_targets_are_assistant_turns_repeated_as_asked(base: Path) -> None:
    tokenizer = load_tokenizer(base, TEMPLATE)
    turns = [turn("user", "red?"), turn("assistant", "good")] * 2
    row = Example(id="x", messages=tuple(turns), capability="c", repeat=3)
    kept, _ = sft_tokens(tokenizer, [row], 128)
    assert len(kept) == 3
    targets = [t for t in kept[0]["labels"].tolist() if t != -100]
    assert tokenizer.decode(targets) == "good<|eot_id|>good<|eot_id|>"


def test_sft_raises_the_likelihood_and_publishes_bfloat16(base: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    work = job(tmp_path / "work")
    watched = Job(work.work, work.resources, "float32", TEMPLATE, lambda i, n: seen.append((i, n)))
    report = train_sft(base, examples(40), tmp_path / "out", sft(epochs=4), watched)
    assert report.metrics["loss"] < report.metrics["first_loss"] - 0.5
    assert report.metrics["steps"] == 20
    assert seen[-1] == (20, 20)
    check_model_folder(tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["use_cache"] is True
    steps = [json.loads(s)["step"] for s in (tmp_path / "work/metrics.jsonl").open()]
    assert steps == list(range(1, 21))


def test_reward_model_learns_an_easy_preference(base: Path, tmp_path: Path) -> None:
    settings = RewardSettings.model_validate({**COMMON, "epochs": 4, "learning_rate": 3e-3})
    report = train_reward(base, preferences(60), tmp_path / "out", settings, job(tmp_path / "w"))
    assert report.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_lora_is_merged_into_a_whole_model(kind: str, base: Path, tmp_path: Path) -> None:
    adapters = {"lora": Lora(rank=2).model_dump(), "epochs": 3, "warmup_share": 0.0}
    out, work = tmp_path / "out", job(tmp_path / "work")
    if kind == "sft":
        train_sft(base, examples(8), out, sft(**adapters), work)
    elif kind == "dpo":
        train_dpo(base, preferences(8), out, dpo(**adapters), work)
    else:
        train_reward(
            base, preferences(8), out, RewardSettings.model_validate({**COMMON, **adapters}), work
        )
    check_model_folder(out)
    before, after = (load_file(f / "model.safetensors") for f in (base, out))
    assert set(before) ^ set(after) == ({"score.weight"} if kind == "reward" else set())
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[name].to(torch.bfloat16), after[name])
    name = "model.embed_tokens.weight"
    assert torch.equal(before[name].to(torch.bfloat16), after[name])


@pytest.mark.parametrize("kind", TRAININGS)
def test_results_do_not_depend_on_the_micro_batch(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_float32(model: Any, tokenizer: Any, out: Path, state: Any = None) -> None:
        save_model_folder(model, tokenizer, out, torch.float32, state)

    # The published bfloat16 would hide, or blow up, differences of this size.
    monkeypatch.setattr("posttrain.training.running.save_model_folder", save_float32)
    for size in (1, 8):
        work = job(tmp_path / f"work{size}", micro_batch_size=size)
        TRAININGS[kind](base, tmp_path / f"out{size}", work)
    one, eight = (load_file(tmp_path / f"out{size}" / "model.safetensors") for size in (1, 8))
    assert max((one[name] - eight[name]).abs().max().item() for name in one) < 1e-5


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_training import KILLED, job
from dataclasses import replace
base, kinds = Path(sys.argv[1]), sys.argv[3:]
for kind in kinds:
    root = Path(sys.argv[2]) / kind
    def wait(done, total):
        while done == 8 and (root / 'slow').exists():
            time.sleep(0.05)
    work = replace(job(root / 'work', checkpoint_every=2), progress=wait)
    KILLED[kind](base, root / 'out', work)
    print('done', kind, flush=True)
"""


def start(base: Path, root: Path, *kinds: str) -> subprocess.Popen[str]:
    """The trainings in a process of their own."""
    script = SCRIPT.format(root=str(Path(__file__).parent.parent))
    command = [sys.executable, "-c", script, str(base), str(root), *kinds]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_in_step_eight(process: subprocess.Popen[str], root: Path) -> None:
    """SIGKILL a training that waits there: two steps after its last checkpoint."""
    metrics = root / "work" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    try:
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 7):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (root / "slow").unlink()


def test_killed_trainings_end_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    for kind in KILLED:
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "slow").touch()
        kill_in_step_eight(start(base, tmp_path, kind), tmp_path / kind)
        assert not (tmp_path / kind / "out").exists()
        left = newest_complete_checkpoint(tmp_path / kind / "work")
        assert left is not None
        assert left.name == "checkpoint-6"
    again = start(base, tmp_path, *KILLED)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    for kind, train in KILLED.items():
        # Saving checkpoints less often must not matter either.
        whole = train(base, tmp_path / f"{kind}-whole", job(tmp_path / f"{kind}-work"))
        resumed = tmp_path / kind / "out" / "model.safetensors"
        assert resumed.read_bytes() == (tmp_path / f"{kind}-whole/model.safetensors").read_bytes()
        lines = (tmp_path / kind / "work/metrics.jsonl").read_text()
        assert lines == (tmp_path / f"{kind}-work/metrics.jsonl").read_text()
        assert len(lines.splitlines()) == whole.metrics["steps"]


@pytest.mark.parametrize("kind", TRAININGS)
def test_sigterm_writes_a_checkpoint_and_the_same_training_goes_on(
    kind: str, base: Path, tmp_path: Path
) -> None:
    work = job(tmp_path / "work", checkpoint_every=100)

    def terminate(done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.signal(signal.SIGTERM, ending.handle)
    try:
        with pytest.raises(Preempted, match="at step 3 of"):
            TRAININGS[kind](base, tmp_path / "out", replace(work, progress=terminate))
    finally:
        signal.signal(signal.SIGTERM, handler)
        ending._asked.clear()
    left = newest_complete_checkpoint(tmp_path / "work")
    assert left is not None
    assert left.name == "checkpoint-3"
    assert not (tmp_path / "out").exists()
    TRAININGS[kind](base, tmp_path / "out", work)
    TRAININGS[kind](base, tmp_path / "whole", job(tmp_path / "w"))
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "whole")]
    assert files[0] == files[1]


class Interrupted(Exception):
    """Stands for anything that ends a training early."""


@pytest.mark.parametrize("kind", TRAININGS)
def test_an_interrupted_lora_training_continues(kind: str, base: Path, tmp_path: Path) -> None:
    adapters = {
        **COMMON,
        "lora": Lora(rank=2, dropout=0.1).model_dump(),
        "epochs": 2,
        "max_steps": 8,
    }

    def train(out: str, job: Job) -> TrainingReport:
        if kind == "sft":
            return train_sft(base, examples(40), tmp_path / out, sft(**adapters), job)
        if kind == "dpo":
            return train_dpo(base, preferences(30), tmp_path / out, dpo(**adapters), job)
        if kind == "pretrain":
            return train_text(base, documents(), tmp_path / out, pretraining(**adapters), job)
        layout = kind.removeprefix("reward-")
        settings = RewardSettings.model_validate({**adapters, "layout": layout})
        return train_reward(base, preferences(30), tmp_path / out, settings, job)

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise Interrupted

    work = job(tmp_path / "work", checkpoint_every=2)
    with pytest.raises(Interrupted):
        train("out", replace(work, progress=interrupt))
    reports = [train("out", work), train("again", work), train("whole", job(tmp_path / "w"))]
    assert reports[0] == reports[1] == reports[2]
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "again", "whole")]
    assert files[0] == files[1] == files[2]


def test_incomplete_checkpoints_are_removed(base: Path, tmp_path: Path) -> None:
    TRAININGS["sft"](base, tmp_path / "out", job(tmp_path / "work"))
    whole = newest_complete_checkpoint(tmp_path / "work")
    assert whole is not None
    for number, name in enumerate(["optimizer.pt", "rng_state.pth", "model.safetensors"]):
        copy = tmp_path / "work" / f"checkpoint-{90 + number}"
        copy.mkdir()
        for file in whole.iterdir():
            data = file.read_bytes()
            (copy / file.name).write_bytes(data[: len(data) // 2] if file.name == name else data)
    assert newest_complete_checkpoint(tmp_path / "work") == whole
    assert [p.name for p in (tmp_path / "work").glob("checkpoint-*")] == [whole.name]


def test_a_changed_training_does_not_continue_an_old_one(base: Path, tmp_path: Path) -> None:
    work = job(tmp_path / "work")
    train_sft(base, examples(16), tmp_path / "old", sft(), work)
    train_sft(base, examples(16), tmp_path / "new", sft(learning_rate=2e-3), work)
    train_sft(base, examples(16), tmp_path / "fresh", sft(learning_rate=2e-3), job(tmp_path / "w"))
    new, fresh = (tmp_path / name / "model.safetensors" for name in ("new", "fresh"))
    assert new.read_bytes() == fresh.read_bytes()


def test_what_ran_before_in_the_process_does_not_matter(base: Path, tmp_path: Path) -> None:
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    TRAININGS["reward-rows"](base, tmp_path / "one", job(tmp_path / "w1"))
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    torch.manual_seed(99)
    TRAININGS["reward-rows"](base, tmp_path / "two", job(tmp_path / "w2"))
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_long_rows_are_dropped_with_a_reason(base: Path, tmp_path: Path) -> None:
    rows = examples(9)
    long = rows[3].model_copy(
        update={"messages": (*rows[3].messages, turn("user", "it " * 60), turn("assistant", "it"))}
    )
    settings = sft(max_length=50)
    report = train_sft(base, [*rows[:3], long], tmp_path / "out", settings, job(tmp_path / "w"))
    assert report.dropped == [("e3", "longer than 50 tokens")]
    assert report.metrics["rows"] == 3
    with pytest.raises(BadInput, match="none of 1 rows can be trained on: 1 longer than 50 tokens"):
        train_sft(base, [long], tmp_path / "none", settings, job(tmp_path / "w2"))


def test_pairs_that_cannot_be_compared_are_dropped(base: Path) -> None:
    tokenizer = load_tokenizer(base, TEMPLATE)
    same = Preference.model_validate(
        {
            "id": "same",
            "prompt": [{"role": "user", "content": "red?"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "good "}],
            "strength": "better",
        }
    )
    reason = ("same", "two responses render to the same tokens")
    assert reward_tokens(tokenizer, [same, *preferences(2)], 128)[1] == [reason]
    assert dpo_tokens(tokenizer, [same, *preferences(2)], 128, True)[1] == [reason]
    with pytest.raises(BadInput, match="none of 2 rows"):
        dpo_tokens(tokenizer, preferences(2), 10, True)


def test_dpo_stops_when_chosen_responses_become_unlikely(base: Path, tmp_path: Path) -> None:
    settings = dpo(learning_rate=0.05, nll_weight=0.0, max_chosen_drop=0.5, epochs=6)
    with pytest.raises(GuardFailed, match=r"dpo\.max_chosen_drop"):
        train_dpo(base, preferences(24), tmp_path / "out", settings, job(tmp_path / "work"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"epochs": 2}, 6),
        ({"epochs": 2, "max_steps": 4}, 4),
        ({"epochs": 1, "max_steps": 30}, 3),
        ({"epochs": 0.5, "max_steps": 30}, 2),
    ],
)
def test_a_training_ends_with_the_first_of_its_limits(
    limits: dict[str, Any], steps: int, base: Path, tmp_path: Path
) -> None:
    work = job(tmp_path / "work", micro_batch_size=4)
    report = train_sft(base, examples(18), tmp_path / "out", sft(**limits), work)
    assert report.metrics["steps"] == steps


def test_precision_is_measured_quickly() -> None:
    start_time = time.monotonic()
    assert choose_precision("cpu") in ("float32", "bfloat16")
    assert time.monotonic() - start_time < 2


def test_a_dialog_renders_for_the_published_model_as_for_its_base(
    base: Path, tmp_path: Path
) -> None:
    train_sft(base, examples(8), tmp_path / "out", sft(), job(tmp_path / "work"))
    one, two = load_tokenizer(base, TEMPLATE), load_tokenizer(tmp_path / "out")
    assert render_dialog(one, examples(1)[0].messages) == render_dialog(
        two, examples(1)[0].messages
    )
