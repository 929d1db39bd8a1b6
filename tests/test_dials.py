"""What a round's training has done to its model, and averages that were chosen by dev prompts.

pytest tests/test_dials.py
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.models.chat import load_tokenizer, render_dialog, render_prompt
from posttrain.models.folders import load_causal
from posttrain.rows import Message
from posttrain.settings.plan import Dials
from posttrain.settings.resources import Resources
from posttrain.settings.stages import DialsStage
from posttrain.stages import dials
from posttrain.steps.output import Inputs, Output
from posttrain.tables import write_rows
from posttrain.workspace import Workspace
from tests.small_round import at, published


def read(run: Path, place: str) -> Any:
    return json.loads((published(run) / place).read_text())


def samples(run: Path) -> list[dict[str, Any]]:
    """Sampled responses of round 1 to dev prompts."""
    lines = (published(run) / "round-1/measure/responses.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if (row["split"], row["mode"]) == ("dev", "sampled")]


def log_prob(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """Of a response, row by row and in plain words."""
    messages = [Message(**turn) for turn in row["messages"]]
    ids = torch.tensor(render_dialog(tokenizer, messages, None).input_ids)
    start = len(render_prompt(tokenizer, messages[:-1], None))
    with torch.no_grad():
        log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return float(log_probs.gather(1, ids[1:, None])[start - 1 :].sum())


def test_the_dials_of_a_round_are_what_its_models_say(run: Path) -> None:
    found, rows = read(run, "round-1/dials/dials.json"), samples(run)
    assert found["eos_share"]["value"] == fmean(row["finish_reason"] == "stop" for row in rows)
    folders = [published(run, f"round-1/{name}") / "model" for name in ("dpo", "sft")]
    tokenizer = load_tokenizer(folders[0])
    policy, reference = map(load_causal, folders)
    gaps = [log_prob(policy, tokenizer, r) - log_prob(reference, tokenizer, r) for r in rows]
    assert found["kl"]["value"] == pytest.approx(fmean(gaps), abs=1e-3)
    assert abs(fmean(gaps)) > 0.01
    trained = [read(run, f"round-1/dpo-{name}/manifest.json")["metrics"] for name in "ab"]
    drop = max(-one["rewards/chosen"] / 0.1 for one in trained)
    assert found["chosen_drop"]["value"] == pytest.approx(drop)
    assert found["margin"]["value"] == min(one["rewards/margins"] for one in trained)
    before = read(run, "round-0/measure/rates.json")["dev"]["sampled"]["lengths"]["mean_tokens"]
    growth = fmean(row["num_tokens"] for row in rows) / before
    assert found["length_growth"]["value"] == pytest.approx(growth)
    assert {name: one["past"] for name, one in found.items() if name == "kl_per_token"} == {
        "kl_per_token": False
    }


def test_a_sample_that_spells_a_control_token_is_counted_and_stops_nothing(
    run: Path, tmp_path: Path
) -> None:
    rows = samples(run)
    rows[0]["messages"][-1]["content"] = "sure <|begin_of_text|>"
    write_rows(tmp_path / "measure" / "responses.jsonl", rows)
    names = {"candidate": "dpo", "sft": "sft", "member:dpo-a": "dpo-a", "member:dpo-b": "dpo-b"}
    paths = {name: published(run, f"round-1/{step}") for name, step in names.items()}
    inputs = Inputs(
        {**paths, "measure": tmp_path / "measure"},
        Workspace(run),
        Resources(device="cpu"),
        tmp_path / "machine.json",
    )
    (tmp_path / "out").mkdir()
    out = Output(tmp_path / "out", lambda done, total: None)
    dials.run(inputs, DialsStage(dials=Dials(), betas={"a": 0.1, "b": 0.1}), out)
    told = out.close()
    assert told["metrics"]["samples_with_control_tokens"] == 1
    assert told["metrics"]["dials"]["kl"]["value"] != 0


def test_a_dial_past_its_limit_is_flagged_or_ends_the_round(run: Path) -> None:
    strict = ("--set", "dials.min_eos_share=1.0", "--set", "dials.min_margin=1e9")
    again = at(run, "round", "1", "--redo-stale", "--until", "dials", *strict)
    assert again.code == 0, again.err
    found = read(run, "round-1/dials/dials.json")
    assert found["margin"]["past"]
    assert found["margin"]["least"] == 1e9
    stopped = at(
        run,
        "round",
        "1",
        "--redo-stale",
        "--until",
        "dials",
        *strict,
        "--set",
        "dials.stop=[margin]",
    )
    assert stopped.code == 1
    assert "past the limits of `dials`: margin is" in stopped.err


def test_a_greedy_average_is_of_the_members_that_joined(run: Path) -> None:
    soup = read(run, "round-1/dpo/soup.json")
    names = soup["members"]
    assert set(names) <= {"a", "b"}
    alone = {name: soup["dev"][name] for name in "ab"}
    assert alone[names[0]] == max(alone.values())
    assert soup["dev"]["+".join(sorted(alone, key=lambda n: (-alone[n], n)))] is not None
    members = [
        load_file(published(run, f"round-1/dpo-{name}") / "model/model.safetensors")
        for name in names
    ]
    found = load_file(published(run, "round-1/dpo") / "model/model.safetensors")
    for name, tensor in found.items():
        mean = sum(one[name].double() for one in members) / len(members)
        assert torch.equal(tensor, mean.to(torch.bfloat16)), name
