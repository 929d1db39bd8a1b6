"""Model folders and their averages: exactness, sharding, and everything that must be refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain import averaging
from posttrain.averaging import average_models
from posttrain.errors import BadInput, Damaged, GuardFailed
from posttrain.models.chat import load_tokenizer
from posttrain.models.folders import check_model_folder, load_causal, save_model_folder
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
    monkeypatch.setattr(averaging, "BLOCK_ELEMENTS", 1000)
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
    refuse(adapter, "an adapter")

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
