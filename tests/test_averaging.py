"""Model folders and their averages: exactness, sharding, and everything that must be refused."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.averaging import average_models, greedy_soup, mean
from posttrain.errors import BadInput, Damaged, GuardFailed
from posttrain.models.chat import load_tokenizer, render_dialog
from posttrain.models.folders import check_model_folder, load_causal, save_model_folder
from posttrain.rows import Message
from tests.small_round import posttrain
from tests.tiny_model import TEMPLATE, make_model


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three bfloat16 models that differ in their weights."""
    root = tmp_path_factory.mktemp("members")
    folders = []
    for seed in range(3):
        base = make_model(root / f"base{seed}", seed=seed)
        folders.append(root / f"member{seed}")
        save_model_folder(load_causal(base), load_tokenizer(base, TEMPLATE), folders[-1])
    return folders


def copy(member: Path, out: Path) -> Path:
    out.mkdir()
    for file in member.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def exact_mean(members: list[Path], shares: list[float]) -> dict[str, torch.Tensor]:
    loaded = [weights(m) for m in members]
    return {
        name: (
            sum(w[name].double() * s for w, s in zip(loaded, shares, strict=True)) / sum(shares)
        ).to(torch.bfloat16)
        for name in loaded[0]
    }


def test_average_is_the_exact_mean_rounded_once(
    members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mean, "BLOCK_ELEMENTS", 1000)
    report = average_models(members, tmp_path / "out")
    expected, found = exact_mean(members, [1, 1, 1]), weights(tmp_path / "out")
    assert set(expected) == set(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert report.num_members == 3
    assert report.num_tensors == len(found)
    assert report.num_parameters == sum(w.numel() for w in found.values())
    check_model_folder(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weighted_average(members: list[Path], tmp_path: Path) -> None:
    average_models(members[:2], tmp_path / "out", weights=[3.0, 1.0])
    expected, found = exact_mean(members[:2], [3.0, 1.0]), weights(tmp_path / "out")
    for name in expected:
        torch.testing.assert_close(expected[name], found[name], rtol=0.01, atol=1e-6)
    with pytest.raises(BadInput, match="expected 2 weights"):
        average_models(members[:2], tmp_path / "no", weights=[1.0])
    with pytest.raises(BadInput, match="positive sum"):
        average_models(members[:2], tmp_path / "no", weights=[0.0, 0.0])


def test_sharding_does_not_matter(members: list[Path], tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    average_models(members[:1], sharded, max_shard_bytes=20_000)
    files = sorted(p.name for p in sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert all((sharded / name).stat().st_size < 25_000 for name in files[1:])
    check_model_folder(sharded)
    AutoModelForCausalLM.from_pretrained(sharded)
    average_models([sharded, *members[1:]], tmp_path / "mixed")
    average_models(members, tmp_path / "plain")
    mixed, plain = (tmp_path / n / "model.safetensors" for n in ("mixed", "plain"))
    assert mixed.read_bytes() == plain.read_bytes()
    assert not (tmp_path / "mixed" / "model.safetensors.index.json").exists()


def test_one_member_stays_as_it_is(members: list[Path], tmp_path: Path) -> None:
    average_models(members[:1], tmp_path / "out")
    one, out = weights(members[0]), weights(tmp_path / "out")
    assert all(torch.equal(one[name], out[name]) for name in one)


def test_tied_weights_that_came_apart_are_noticed(members: list[Path], tmp_path: Path) -> None:
    def twice(number: int, change: float) -> Path:
        folder = copy(members[number], tmp_path / f"twice{number}-{change}")
        tensors = weights(folder)
        head = tensors["model.embed_tokens.weight"].clone()
        head[-1, -1] += change
        tensors["lm_head.weight"] = head
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    average_models([twice(0, 0.0), twice(1, 0.0)], tmp_path / "out")
    with pytest.raises(GuardFailed, match=r"ties lm_head\.weight and model\.embed_tokens\.weight"):
        average_models([twice(2, 0.0), twice(1, 0.5)], tmp_path / "apart")


def test_members_that_differ_are_refused(members: list[Path], tmp_path: Path) -> None:
    def refuse(other: Path, message: str, error: type[Exception] = BadInput) -> None:
        with pytest.raises(error, match=message) as caught:
            average_models([members[0], other], tmp_path / "out")
        assert str(other) in str(caught.value)

    wide = make_model(tmp_path / "wide", hidden=64)
    refuse(wide, "shape of .*embed_tokens")

    float32 = tmp_path / "float32"
    base = make_model(tmp_path / "base")
    save_model_folder(load_causal(base), load_tokenizer(base), float32, torch.float32)
    refuse(float32, "dtype of .*BF16.*F32")

    fewer = copy(members[1], tmp_path / "fewer")
    kept = weights(fewer)
    del kept["model.norm.weight"]
    save_file(kept, fewer / "model.safetensors")
    refuse(fewer, "model.norm.weight is in .* but not in")

    template = copy(members[1], tmp_path / "template")
    (template / "chat_template.jinja").write_text("{{ messages }}")
    refuse(template, "chat_template.jinja differs")

    config = copy(members[1], tmp_path / "config")
    content = json.loads((config / "config.json").read_text())
    (config / "config.json").write_text(json.dumps({**content, "rms_norm_eps": 0.1}))
    refuse(config, "rms_norm_eps is")

    adapter = copy(members[1], tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    refuse(adapter, "expected the configuration of a LoRA adapter")

    truncated = copy(members[1], tmp_path / "truncated")
    data = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(data[:1000])
    refuse(truncated, "model.safetensors", Damaged)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_member_with_nan_is_named(value: float, members: list[Path], tmp_path: Path) -> None:
    broken = copy(members[1], tmp_path / "broken")
    tensors = weights(broken)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Damaged, match=r"broken: model\.layers\.1\.mlp\.up_proj"):
        average_models([members[0], broken], tmp_path / "out")


def test_model_folders_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = load_tokenizer(base, TEMPLATE)
    whole = tmp_path / "whole"
    save_model_folder(model, tokenizer, whole)
    check_model_folder(whole)
    weights = whole / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        check_model_folder(whole)
    weights.rename(whole / "pytorch_model.bin")
    with pytest.raises(BadInput, match="unpickled"):
        check_model_folder(whole)
    (whole / "pytorch_model.bin").unlink()
    weights.write_bytes(data)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(whole)
    with pytest.raises(BadInput, match="321 tokens"):
        check_model_folder(whole)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(GuardFailed, match="norm"):
        save_model_folder(model, tokenizer, tmp_path / "nan")


def adapter(base: Path, out: Path, seed: int, **changes: Any) -> Path:
    """A LoRA adapter of random factors, as peft writes it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **changes
    )
    torch.manual_seed(seed)
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, factor in tuned.named_parameters():
            if "lora_B" in name:
                factor.normal_(std=0.05)
    tuned.save_pretrained(out)
    return out


def test_adapters_are_merged_exactly_before_they_are_averaged(tmp_path: Path) -> None:
    base = tmp_path / "base32"
    made = make_model(tmp_path / "made")
    save_model_folder(load_causal(made), load_tokenizer(made, TEMPLATE), base, torch.float32)
    adapters = [adapter(base, tmp_path / f"adapter{seed}", seed) for seed in (1, 2)]
    average_models(adapters, tmp_path / "out")
    merged = []
    for one in adapters:
        model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), one)
        merged.append(model.merge_and_unload().state_dict())
    found = weights(tmp_path / "out")
    assert sum(not torch.equal(found[name], weights(base)[name]) for name in found) > 5
    for name, tensor in found.items():
        wanted = (merged[0][name].double() + merged[1][name].double()) / 2
        assert torch.allclose(tensor.double(), wanted, atol=1e-7), name
    # The result is a model by itself, and an adapter averages with a merged one.
    check_model_folder(tmp_path / "out")
    average_models([tmp_path / "out", adapters[0]], tmp_path / "both", weights=[0.25, 0.75])


def test_adapters_that_cannot_be_merged_here_are_refused(
    members: list[Path], tmp_path: Path
) -> None:
    one = adapter(members[0], tmp_path / "dora", 1, use_dora=True)
    with pytest.raises(BadInput, match="use_dora is True"):
        average_models([one], tmp_path / "out")
    plain = adapter(members[0], tmp_path / "plain", 1)
    path = plain / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere"}))
    with pytest.raises(BadInput, match="where no model lies; name it with --base"):
        average_models([plain], tmp_path / "out")
    average_models([plain], tmp_path / "out", base=members[0])
    path.write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(Damaged, match="of rank 4, and the configuration says 8"):
        average_models([plain], tmp_path / "out2")


def test_a_greedy_soup_takes_what_does_not_measure_worse(
    members: list[Path], tmp_path: Path
) -> None:
    """Killed after each measure once, it ends as it would have."""
    names = dict(zip("abc", members, strict=True))
    values = {"a": 0.5, "b": 0.7, "c": 0.6, "b+c": 0.65, "b+a": 0.7}
    asked: list[str] = []

    def measure(label: str, folder: Path) -> float:
        assert (folder / "model.safetensors").is_file()
        if asked.count(label) == 0:
            asked.append(label)
            raise InterruptedError(label)
        asked.append(label)
        return values[label]

    soup = None
    while soup is None:
        with contextlib.suppress(InterruptedError):
            soup = greedy_soup(names, measure, tmp_path / "work")
    assert soup.members == ("b", "a")
    assert soup.measures == values
    assert sorted(asked) == sorted([*values, *values])
    assert not (tmp_path / "work" / "mixture").exists()


def test_the_average_command(members: list[Path], tmp_path: Path) -> None:
    one, two = map(str, members[:2])
    done = posttrain("average", one, two, "--weights", "3,1", "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    expected = exact_mean(members[:2], [3.0, 1.0])
    found = weights(tmp_path / "out")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    card = (tmp_path / "out/README.md").read_text()
    assert f"base_model:\n- {one}\n- {two}\n" in card
    assert not (tmp_path / "out.partial").exists()
    gone = str(tmp_path / "gone")
    assert posttrain("average", one, gone, "--out", str(tmp_path / "x")).code == 2
    assert not list(tmp_path.glob("x*"))
    for words, message in {
        (one, two, "--out", str(tmp_path / "out")): "already there",
        (one, one, "--out", "x"): "a member is named twice",
        (one, two, "--out", "x", "--weights", "1"): "expected 2 weights, one a member, got 1",
        (one, two, "--out", "x", "--weights", "0,0"): "at least one must be above 0",
        (one, two, "--out", "x", "--method", "weighted"): "weights and method weighted belong",
        (one, two, "--out", "x", "--method", "greedy"): "belong together",
    }.items():
        ended = posttrain("average", *words)
        assert ended.code == 2
        assert message in ended.one_line()
    rows = tmp_path / "dev.jsonl"
    turns = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    rows.write_text(json.dumps({"id": "x", "messages": turns}) + "\n")
    done = posttrain(
        "average", one, two, "--dev", str(rows), "--out", str(tmp_path / "s"), "--json"
    )
    assert done.code == 0, done.err
    nll = json.loads(done.out)["nll"]
    assert set(nll) == {one, two, *(label for label in nll if " + " in label)}
    assert len(nll) == 3
    likely = {}
    for member in (one, two):
        model = load_causal(Path(member))
        ids = render_dialog(load_tokenizer(Path(member)), [Message(**t) for t in turns], None)
        targets = torch.tensor(ids.input_ids)
        with torch.no_grad():
            log_probs = model(targets[None]).logits[0, :-1].log_softmax(-1)
        picked = log_probs.gather(1, targets[1:, None])[:, 0]
        mask = torch.tensor(ids.target_mask[1:], dtype=torch.bool)
        likely[member] = -float(picked[mask].mean())
    assert {m: pytest.approx(v, abs=1e-4) for m, v in likely.items()} == {
        m: nll[m] for m in (one, two)
    }
