"""A plan and its variations: run by one command, compared pairwise, shown in the report."""

import json
from pathlib import Path

import pytest

from tests.small_round import PLAN, Ended, new_workspace, posttrain

SHORT = """
extends: small
rounds:
  - prompts: [{type: hook, recipe: math, num: 24, options: {levels: [1]}}]
    preferences: [data/pairs.jsonl]
tasks: {models: [previous]}
evaluation: {members: true, show: [filler_share]}
"""
PLAIN = """
extends: short
varies: neither DPO nor averaging, and any response that passes
dpo: {enabled: false}
sft: {variants: {a: {}, b: null}}
reward: {variants: {a: {}, b: null}}
selection: {by: random, verify: false}
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    folder = new_workspace(tmp_path_factory.mktemp("ablations") / "ws")
    (folder / "rounds/small.yaml").write_text(PLAN)
    (folder / "rounds/short.yaml").write_text(SHORT)
    (folder / "rounds/ablations/plain.yaml").write_text(PLAIN)
    return folder, ablations(folder, "--json")


def ablations(folder: Path, *words: str) -> Ended:
    return posttrain("ablations", "--plan", "short", "--workspace", str(folder), *words)


def test_each_runs_in_its_own_folder_and_they_are_compared(compared: tuple[Path, Ended]) -> None:
    folder, ended = compared
    assert ended.code == 0, ended.err
    found = json.loads(ended.out[ended.out.index("\n{") :])
    full, plain = found["rows"]
    assert (full["name"], plain["name"]) == ("short", "plain")
    assert full["sampled"]["difference"]["value"] == 0
    gap = plain["sampled"]["rate"] - full["sampled"]["rate"]
    assert plain["sampled"]["difference"]["value"] == pytest.approx(gap)
    assert plain["sampled"]["by_seed"] == {"0": pytest.approx(gap)}
    assert 0 <= plain["measures"]["filler_share"] <= 1
    assert found["unfinished"] == []
    assert json.loads((folder / "runs/short/ablations.json").read_text()) == found


def test_a_variation_without_dpo_ends_with_sft(compared: tuple[Path, Ended]) -> None:
    run = compared[0] / "runs/ablations/plain/round-1"
    steps = {path.name for path in run.iterdir()}
    assert {"sft-a", "sft", "rm-a"} <= steps
    assert not {"dpo", "dpo-a", "sft-b", "rm-b"} & steps
    policy = json.loads((run / "gate/policy.json").read_text())
    assert policy["step"] == "round-1/sft"
    members = json.loads((run / "measure-members/rates.json").read_text())
    assert list(members) == ["sft", "sft-a"]
    rows = [json.loads(line) for line in (run / "select/dropped.jsonl").open()]
    reasons = {row["reason"] for row in rows}
    assert "another one of K was drawn" in reasons
    assert not reasons & {"verifier", "not the best of K"}


def test_the_report_shows_variants_levels_and_variations(compared: tuple[Path, Ended]) -> None:
    folder = compared[0]
    ended = posttrain("report", "--plan", "short", "--workspace", str(folder))
    page = Path(ended.out.strip()).read_text()
    assert "neither DPO nor averaging" in page
    assert "sft, the average" in page
    assert "filler_share" in page


def test_what_is_done_is_not_run_again_and_other_seeds_have_their_folders(
    compared: tuple[Path, Ended],
) -> None:
    folder = compared[0]
    again = ablations(folder)
    assert again.code == 0, again.err
    assert "runs/short/ablations.json" in again.out.replace("\n", "")
    only = ablations(folder, "--seeds", "0,1", "--compare-only", "--json")
    left = json.loads(only.out)["unfinished"]
    assert left == ["short, seed 1", "ablations/plain, seed 1"]
    assert not (folder / "runs/short-seed-1").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--only", "plane"), "--only plane: no such variation; did you mean plain"),
        (("--seeds", "1;2"), "--seeds 1;2: expected numbers with commas"),
        (("--set", "dpo.beta=x"), "rounds/short.yaml over rounds/small.yaml: dpo.beta"),
    ],
)
def test_misuse_is_one_line(compared: tuple[Path, Ended], words: list[str], reason: str) -> None:
    ended = ablations(compared[0], "--compare-only", *words)
    assert ended.code == 2
    assert reason in ended.one_line()


def test_a_plan_without_variations_says_what_one_is(compared: tuple[Path, Ended]) -> None:
    ended = posttrain("ablations", "--plan", "llama3", "--workspace", str(compared[0]))
    assert ended.code == 2
    assert "`extends: llama3`" in ended.one_line()


def test_a_run_may_have_a_name_of_its_own(compared: tuple[Path, Ended]) -> None:
    where = ("--plan", "short", "--workspace", str(compared[0]))
    ended = posttrain("plan", "1", "--run", "elsewhere", *where)
    assert ended.code == 0
    assert "to run" in ended.out
    ended = posttrain("plan", "1", "--run", "../up", *where)
    assert ended.code == 2
    assert "--run ../up" in ended.one_line()
