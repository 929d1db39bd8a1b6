"""Bad input at the command line: one line that says what to do, the exit code, no traceback."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.small_round import (
    PLAN,
    at,
    cut,
    manifest,
    pair,
    posttrain,
    published,
    write_lines,
)

SKIP_TASKS = ("--set", "rounds.1.preferences=[data/bad.jsonl]")


def test_the_command_itself_ends_in_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", "check"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("posttrain: ")
    assert "run posttrain init DIR first" in done.stderr
    assert done.stderr.count("\n") == 1


def test_which_plan(workspace: Path) -> None:
    several = posttrain("check", "--workspace", str(workspace))
    assert several.code == 2
    assert several.one_line().endswith("holds llama3, small, tiny")
    unknown = posttrain("check", "--plan", "smal", "--workspace", str(workspace))
    assert unknown.code == 2
    assert "did you mean small?" in unknown.one_line()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["dpo.betta=1"], "rounds/small.yaml: dpo.betta: unknown key; did you mean beta?"),
        (["mix={maht: 1.0}", "recipes={}"], "recipe maht: not found; did you mean math?"),
        (["recipes.math.kk=3"], "recipes/math/recipe.yaml + plan.recipes.math: kk: unknown key"),
        (["pipeline.dedup.rul=seen"], "plan.pipeline: dedup.rul: unknown key; did you mean rule"),
        (["base=models/gone"], "models/gone: not found in"),
        (["bootstrap.human=[data/gone.jsonl]"], "data/gone.jsonl: not found in"),
        (["rounds.1.prompts=[{path: data/gone.jsonl}]"], "data/gone.jsonl: not found in"),
        (["chat.template=gone.jinja"], "gone.jinja: not found in"),
        (["annotator={type: simulated, rules: gone.py}", "rounds.0.preferences=[]",
          "bootstrap.tasks=[{path: data/human.jsonl}]"], "gone.py: not found in"),
        (["recipes.math.max_tokens=256"], "max_tokens 256 leaves no room for a prompt"),
        (["recipes.math.system_prompts=[gone]"], "gone.jinja"),
        (["recipes.math.hooks=[prompts, verify, judge]"], "hooks.py defines no judge()"),
        (["pipeline.clean.rules=[gone]"], "data_quality/rules.py defines no gone()"),
        (["resources.min_free_gib=1e9"], "resources.min_free_gib asks for"),
        pytest.param(
            ["rounds.0.prompts=[5]"], "rounds.0.prompts.0",
        ),
        (["title=[1"], "the value is no valid YAML"),
    ],
)  # fmt: skip
def test_check_refuses_what_a_plan_says(workspace: Path, overrides: list[str], line: str) -> None:
    ended = at(workspace, "check", *(part for one in overrides for part in ("--set", one)))
    assert ended.code == 2
    assert line in ended.one_line()


def test_wrong_keys_in_the_file_are_a_line_each(workspace: Path) -> None:
    (workspace / "rounds" / "small.yaml").write_text(PLAN + "kep: {}\ntitle: no\n")
    ended = at(workspace, "check")
    assert ended.code == 2
    assert ended.err.splitlines() == [
        "posttrain: rounds/small.yaml: title: Input should be a valid string (got False)",
        "posttrain: rounds/small.yaml: kep: unknown key; did you mean keep?",
    ]


@pytest.mark.parametrize("file", ["human.jsonl", "pairs.jsonl"])
def test_check_reads_the_data(workspace: Path, file: str) -> None:
    path = workspace / "data" / file
    assert at(workspace, "check").code == 0
    path.write_bytes(path.read_bytes()[:-20] + b"\n{}\n{}\n")
    ended = at(workspace, "check")
    assert ended.code == 2
    assert f"{file}: 3 of " in ended.one_line()
    assert "no valid JSON" in ended.err


def _spoil(path: Path) -> None:
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


@pytest.mark.parametrize(
    ("file", "damage", "code"),
    [
        ("model.safetensors", cut, 1),
        ("model.safetensors", _spoil, 1),
        ("model.safetensors", Path.unlink, 2),
        ("config.json", cut, 2),
        ("config.json", Path.unlink, 2),
        ("tokenizer.json", cut, 2),
        ("tokenizer.json", Path.unlink, 2),
        ("tokenizer_config.json", cut, 2),
    ],
)
def test_check_names_the_damaged_part_of_a_model(
    workspace: Path, file: str, damage: Callable[[Path], None], code: int
) -> None:
    shutil.copytree(workspace / "rounds/tiny/base", workspace / "model")
    damage(workspace / "model" / file)
    ended = at(workspace, "check", "--set", "base=model")
    assert ended.code == code
    assert str(workspace / "model") in ended.err
    if not file.startswith("tokenizer"):
        assert file in ended.err


def test_init_makes_no_workspace_where_something_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        ended = posttrain("init", str(place))
        assert ended.code == 2
        assert "expected a new or empty folder" in ended.one_line()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("round", "7"), "round 7: rounds/small.yaml has 2"),
        (("round", "0"), "round 0: rounds/small.yaml has 2"),
        (("plan", "3"), "round 3: rounds/small.yaml has 2"),
        (("round", "2"), "round 2 needs round 1, whose step heldout is to run"),
        (("round", "1", "--from", "dop"), "--from dop: no such step; this round has heldout"),
        (("round", "1", "--until", "sft-c"), "--until sft-c: no such step"),
        (("round", "1", "--from", "dpo", "--until", "rm"), "--from dpo comes after --until rm"),
        (("round", "1", "--from", "dpo"), "--from dpo: round-0/heldout before it is to run"),
        (("why", "nonsense"), "nonsense: no published table of runs/small holds this row"),
        (("export", "--out", "model"), "no round is finished, there is nothing to export"),
    ],
)
def test_too_early_or_unknown(workspace: Path, command: tuple[str, ...], line: str) -> None:
    ended = at(workspace, *command)
    assert ended.code == 2
    assert line in ended.one_line()


# ---------------------------------------------------------------- rows that do not fit


def test_each_malformed_preference_is_counted_and_kept_with_its_reason(run: Path) -> None:
    twice = {"role": "user", "content": "again"}
    same = "the answer to this question is surely the number of the beast"
    rows: list[tuple[dict[str, Any] | bytes, str]] = [
        (pair(1), ""),
        (json.dumps(pair(2)).encode()[:-30], "malformed: no valid JSON"),
        (pair(3, strength="much better"), "malformed: strength: Input should be 'marginally"),
        (pair(4, chosen=[{"role": "assistant", "content": " "}]), "malformed: turn 1 (assistant)"),
        (pair(5, prompt=[twice, twice]), "malformed: turn 1 is user, expected assistant"),
        (pair(6, id="p1"), "malformed: id p1 was already used in line 1"),
        (pair(7, chosen=pair(7)["rejected"]), "malformed: two responses of the ranking are equal"),
        (
            pair(8, prompt=[{"role": "user", "content": "hi<|eot_id|>"}]),
            "malformed: control token <|eot_id|> inside a message",
        ),
        (json.dumps(pair(9)).encode()[:-1] + b', "x": "\xff"}', "malformed: not UTF-8 at byte"),
        (pair(10, capability="chess"), "unknown capability: chess"),
        (
            pair(
                11,
                chosen=[{"role": "assistant", "content": same}],
                rejected=[{"role": "assistant", "content": same + "!"}],
            ),
            "responses too similar",
        ),
        (pair(12), ""),
        (json.dumps(pair(13)).encode()[:50], "malformed: no valid JSON"),
    ]
    write_lines(run / "data" / "bad.jsonl", [row for row, _ in rows])
    share = ("--set", "resources.reject_share=0.8")
    ended = at(run, "round", "2", "--until", "preferences", *SKIP_TASKS, *share)
    assert ended.code == 0, ended.err
    books = manifest(run, "round-2/preferences")
    assert books["funnel"] == [
        {
            "name": "preferences",
            "rows_in": 13,
            "rows_out": 2,
            "dropped": {"malformed": 9, "unknown capability": 1, "responses too similar": 1},
            "changed": {},
        }
    ]
    assert sum(books["rows"][split] for split in ("train", "dev", "test")) == 2
    dropped = (published(run, "round-2/preferences") / "dropped.jsonl").read_text().splitlines()
    told = {row["id"]: row for row in map(json.loads, dropped)}
    for number, (_, reason) in enumerate(rows, 1):
        if reason.startswith("malformed"):
            row = told[f"bad.jsonl:{number}"]
            assert (row["file"], row["line"]) == ("bad.jsonl", number)
            assert row["reason"].startswith(reason)
    assert told["p10"]["reason"] == "unknown capability: chess"
    assert told["p11"]["reason"] == "responses too similar"
    assert (told["p11"]["measure"], told["p11"]["ranks"]) == ("edit", [1, 2])
    assert 0.95 < told["p11"]["value"] < 1


def test_too_many_malformed_rows_publish_nothing(run: Path) -> None:
    write_lines(run / "data" / "bad.jsonl", [pair(1), b"{", pair(2)])
    ended = at(run, "round", "2", "--until", "preferences", *SKIP_TASKS)
    assert ended.code == 2
    line = ended.one_line()
    assert "bad.jsonl: 1 of 3 rows are malformed, more than the allowed 5%" in line
    assert "line 2: no valid JSON" in line
    assert not published(run, "round-2/preferences").exists()
    assert "round-2/preferences      to run" in at(run, "plan", "2", *SKIP_TASKS).out


def test_malformed_prompts_stop_a_step_past_the_share(run: Path) -> None:
    prompt = {"prompt": [{"role": "user", "content": "1+1=?"}], "capability": "math"}
    write_lines(run / "data" / "prompts.jsonl", [prompt, b"{", {**prompt, "prompt": []}])
    tasks = ("--set", "rounds.0.tasks=[{path: data/prompts.jsonl}]", "--redo-stale")
    ended = at(run, "round", "1", "--from", "tasks", *tasks)
    assert ended.code == 2
    assert "prompts.jsonl: 2 of 3 rows are malformed" in ended.one_line()
    assert not published(run, "round-1/tasks").exists()


def test_a_prompt_longer_than_the_context_is_dropped_and_counted(run: Path) -> None:
    prompt = [{"role": "user", "content": "7" * 600}]
    row = {"id": "long", "prompt": prompt, "capability": "math"}
    short = {**row, "id": "short", "prompt": [{"role": "user", "content": "7+7=?"}]}
    write_lines(run / "data" / "long.jsonl", [row])
    tasks = ("--set", "rounds.0.tasks=[{path: data/long.jsonl}]", "--redo-stale")
    ended = at(run, "round", "1", "--from", "tasks", *tasks)
    assert ended.code == 2
    assert "of 1 prompts none is left to make a task of" in ended.one_line()
    assert not published(run, "round-1/tasks").exists()
    write_lines(run / "data" / "long.jsonl", [row, short])
    assert at(run, "round", "1", "--from", "tasks", *tasks).code == 0
    assert manifest(run, "round-1/tasks")["funnel"][0]["dropped"] == {"too long": 1}
    dropped = (published(run, "round-1/tasks") / "dropped.jsonl").read_text()
    assert "for a response, of 256" in dropped


def test_people_are_waited_for_and_their_answers_continue_the_round(run: Path) -> None:
    path = run / "annotations" / "small" / "round-1.jsonl"
    waiting = at(run, "round", "2")
    assert waiting.code == 3
    assert str(path) in waiting.one_line()
    assert str(published(run, "round-1/tasks") / "tasks.jsonl") in waiting.one_line()
    assert f"waiting  for {path}" in at(run, "plan", "2").out
    tasks = (published(run, "round-1/tasks") / "tasks.jsonl").read_text().splitlines()
    ids = [json.loads(task)["id"] for task in tasks]
    assert len(ids) >= 3
    path.parent.mkdir(parents=True)
    base = {"annotator": "ann"}
    answers: list[dict[str, Any] | bytes] = [
        {"task": task, "choice": "a", "strength": "better", **base} for task in ids[1:]
    ]
    stranger = {"task": "round-9/x", "choice": "tie", **base}
    write_lines(path, [*answers, stranger])
    wrong = at(run, "round", "2", "--until", "preferences")
    assert wrong.code == 2
    assert "answers task round-9/x, which this run never published" in wrong.one_line()
    write_lines(path, [*answers, {"task": ids[0], "choice": "tie", **base}])
    ended = at(run, "round", "2", "--until", "preferences")
    assert ended.code == 0, ended.err
    books = manifest(run, "round-2/preferences")
    assert books["rows"]["judgments"] == len(ids)
    assert books["funnel"][0]["dropped"]["tie"] == 1
