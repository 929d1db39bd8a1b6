"""Two small rounds through the real command line: what they publish, and what must hold of it."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bench.small import small_workspace
from posttrain.models.chat import load_tokenizer, render_prompt
from posttrain.models.folders import load_causal
from posttrain.rows import Message, prompt_hash
from posttrain.tables import read_json


def command(workspace: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", *words],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_workspace(tmp_path_factory.mktemp("loop"), rounds=2, num_prompts=24)
    command(folder, "run")
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_folder(workspace: Path) -> Path:
    return workspace / "runs" / "small"


def messages(turns: list[dict[str, Any]]) -> list[Message]:
    return [Message.model_validate(turn) for turn in turns]


def test_round_one_is_averaged_at_each_stage_and_gated(workspace: Path) -> None:
    for stage in ("rm", "sft", "dpo"):
        average = load_file(run_folder(workspace) / f"round-1/{stage}/model/model.safetensors")
        members = [
            load_file(run_folder(workspace) / f"round-1/{stage}-{name}/model/model.safetensors")
            for name in "ab"
        ]
        name = "model.layers.0.mlp.up_proj.weight"
        mean = (members[0][name].double() + members[1][name].double()) / 2
        assert torch.equal(average[name], mean.to(average[name].dtype))
        assert not torch.equal(members[0][name], members[1][name])
    policy = read_json(run_folder(workspace) / "round-2/gate/policy.json")
    assert policy["step"] in ("round-2/dpo", "round-1/dpo", "round-0/bootstrap")


def test_train_dev_and_test_are_disjoint_by_prompt(workspace: Path) -> None:
    folder = run_folder(workspace)
    held_out = {
        split: {
            prompt_hash(messages(row["prompt"]))
            for row in rows(folder / f"round-0/heldout/{split}.jsonl")
        }
        for split in ("dev", "test")
    }
    assert held_out["dev"]
    assert held_out["test"]
    assert not held_out["dev"] & held_out["test"]
    prefs = {"train": set(), "dev": set(), "test": set()}
    trained = set()
    for number in (1, 2):
        at = folder / f"round-{number}"
        for row in rows(at / "prompts/train.jsonl"):
            trained.add(prompt_hash(messages(row["prompt"])))
        for row in rows(at / "curate/train.jsonl"):
            trained.add(prompt_hash(messages(row["messages"][:-1])))
        for split, found in prefs.items():
            for row in rows(at / f"preferences/{split}.jsonl"):
                found.add(prompt_hash(messages(row["prompt"])))
    for row in rows(workspace / "rounds/tiny/data/human.jsonl"):
        assert prompt_hash(messages(row["messages"][:-1])) not in held_out["dev"] | held_out["test"]
    trained |= prefs["train"]
    assert trained
    assert not trained & (held_out["dev"] | held_out["test"] | prefs["dev"] | prefs["test"])
    assert not prefs["dev"] & prefs["test"]


def test_every_row_is_accounted_for(workspace: Path) -> None:
    for manifest in run_folder(workspace).glob("round-*/*/manifest.json"):
        for part in read_json(manifest)["funnel"]:
            lost = sum(part["dropped"].values())
            where = f"{manifest.parent.name}: {part}"
            assert part["rows_in"] - lost == part["rows_out"], where


def test_tasks_come_from_two_models_and_hide_which(workspace: Path) -> None:
    tasks = rows(run_folder(workspace) / "round-1/tasks/tasks.jsonl")
    assert all(task["model_a"] != task["model_b"] for task in tasks)
    assert all(task["a"] != task["b"] for task in tasks)
    sides = [task["model_a"] < task["model_b"] for task in tasks]
    assert 0.15 < sum(sides) / len(sides) < 0.85
    assert not (run_folder(workspace) / "round-2/tasks").exists()


def test_running_again_does_nothing_and_is_quick(workspace: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run_folder(workspace).rglob("manifest.json")}
    begun = time.monotonic()
    done = command(workspace, "run")
    assert time.monotonic() - begun < 10
    assert "33 of 33 steps already done" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in run_folder(workspace).rglob("manifest.json")}


def test_why_leads_from_a_training_row_to_its_prompt(workspace: Path) -> None:
    row = next(
        row
        for row in rows(run_folder(workspace) / "round-2/curate/train.jsonl")
        if row["source"].startswith("rejection")
    )
    chain = json.loads(command(workspace, "why", row["id"], "--json").stdout)
    at = [link["address"] for link in chain]
    assert any(address.endswith("/prompts") for address in at)
    assert any(address.endswith("/sample") for address in at)
    scored = [link for link in chain if "score" in link["columns"]]
    assert scored
    assert any("seed" in link["columns"] and "model" in link["columns"] for link in chain)
    text = command(workspace, "why", row["id"]).stdout
    assert row["id"] in text


def test_plan_tells_drift_and_a_changed_recipe(workspace: Path) -> None:
    plan = command(workspace, "plan", "2", "--set", "dpo.beta=0.2", "--json").stdout
    states = {one["step"]: one for one in json.loads(plan)}
    assert states["round-2/sft"]["state"] == "done" or states["round-2/sft"]["state"] == "unknown"
    first = json.loads(command(workspace, "plan", "1", "--set", "dpo.beta=0.2", "--json").stdout)
    dpo = next(one for one in first if one["step"] == "round-1/dpo-a")
    assert dpo["state"] == "stale"
    assert dpo["reasons"] == ["dpo.beta 0.1 → 0.2"]
    refused = command(workspace, "round", "1", "--set", "dpo.beta=0.2", check=False)
    assert refused.returncode == 2
    assert "dpo.beta 0.1 → 0.2" in refused.stderr


def test_status_and_report_tell_the_rounds(workspace: Path) -> None:
    found = json.loads(command(workspace, "status", "--verify", "--json").stdout)
    assert [row["name"] for row in found] == ["base", "bootstrap", "round 1", "round 2"]
    assert all(row["done"] == row["steps"] for row in found)
    path = Path(command(workspace, "report").stdout.strip())
    page = path.read_text()
    assert "simulated" in page
    # Links are fine, but nothing may be fetched to show the page.
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.https?:", page)


def test_the_exported_model_loads_and_answers(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    command(workspace, "export", "--out", str(out))
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {
        p.name for p in out.iterdir()
    }
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    card = (out / "README.md").read_text()
    assert "simulated" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model_relation"] in ("merge", "finetune")
    step = re.search(r"step `(.*?)`", card)
    assert step is not None
    if front["base_model_relation"] == "merge":
        at = step[1].partition("/")[0]
        assert all(re.fullmatch(rf"{at}/(dpo|sft)-[a-z0-9]+", one) for one in front["base_model"])
    assert "round-0/bootstrap" in card or "round-1" in card
    tokenizer = load_tokenizer(out)
    ids = render_prompt(tokenizer, [Message(role="user", content="12+5=?")])
    model = load_causal(out)
    answer = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
    assert answer.shape[1] > len(ids)
    assert command(workspace, "export", "--out", str(out), check=False).returncode == 2


def test_gc_keeps_what_the_plan_names_and_the_run_stays_done(
    workspace: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(workspace, copy)
    command(copy, "gc", "--set", "keep.policy=1")
    left = {
        str(p.relative_to(run_folder(copy)).parent.parent)
        for p in run_folder(copy).rglob("*.safetensors")
    }
    policy = read_json(run_folder(copy) / "round-2/gate/policy.json")
    chosen = {policy["step"], policy["best"]["step"]}
    assert left == {"round-2/rm", "round-2/sft", "round-2/dpo", *chosen}
    assert (run_folder(copy) / "round-1/dpo-a/manifest.json").is_file()
    assert "33 of 33 steps already done" in command(copy, "run").stdout
    command(copy, "status", "--verify")
    command(copy, "report")
