"""`posttrain sample`: prompts in, responses out, killed and continued, and what it refuses.

pytest tests/test_sample_files.py
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoModelForSequenceClassification

from posttrain.models.chat import load_tokenizer
from posttrain.models.folders import save_model_folder
from posttrain.responses import Draw, steered_requests
from posttrain.rows import Candidate, Prompt, stable_seed
from posttrain.settings.recipe import RecipeSettings
from posttrain.steps.lock import run_lock
from posttrain.tables import json_lines, load_rows, write_rows
from posttrain.workspace import Workspace
from tests.small_round import Ended, posttrain

ROOT = Path(__file__).parents[1]
BASE = ROOT / "rounds/tiny/base"
QUESTIONS = ("34+75=?", "Reverse the word lemon.", "7+8=?", "Sort the letters of stone.", "Hi!")

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true",
    reason="vllm is not installed",
)


def ask(place: int, **fields: Any) -> dict[str, Any]:
    """A row that asks one of the questions."""
    prompt = [{"role": "user", "content": QUESTIONS[place % len(QUESTIONS)]}]
    return {"id": f"p{place}", "prompt": prompt, **fields}


def words(folder: Path, *more: str, rows: str = "prompts.jsonl", model: Path = BASE) -> list[str]:
    """The command's words: short responses of the tiny base."""
    out = str(folder / "out.jsonl")
    short = ["--max-tokens", "12", "-k", "3", "--device", "cpu"]
    return ["sample", str(model), str(folder / rows), "--out", out, *short, *more]


def sampled(folder: Path, *more: str, rows: str = "prompts.jsonl") -> list[Candidate]:
    """The rows that the command writes."""
    ended = posttrain(*words(folder, *more, rows=rows))
    assert ended.code == 0, ended.err
    assert not (folder / "out.parts").exists()
    return load_rows(folder / "out.jsonl", Candidate)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a head that scores, untrained."""
    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)
    folder = tmp_path_factory.mktemp("models") / "reward"
    save_model_folder(model, load_tokenizer(BASE), folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with five prompts."""
    write_rows(tmp_path / "prompts.jsonl", [ask(place) for place in range(5)])
    return tmp_path


def test_each_prompt_gets_k_responses_that_score_reads(
    folder: Path,
    reward: Path,
) -> None:
    ended = posttrain(*words(folder, "--json"))
    assert ended.code == 0, ended.err
    rows = load_rows(folder / "out.jsonl", Candidate)
    assert [row.id for row in rows] == [f"p{i}/{n}" for i in range(5) for n in range(3)]
    assert [row.seed for row in rows] == [
        stable_seed(0, 0, f"p{i}", None) + n for i in range(5) for n in range(3)
    ]
    assert {row.model for row in rows} == {str(BASE)}
    assert len({row.response for row in rows}) > 5
    assert all(1 <= row.num_tokens <= 12 for row in rows)
    assert {row.num_tokens for row in rows if row.finish_reason == "length"} == {12}
    told = json.loads(ended.out)
    tokens, stopped = sum(r.num_tokens for r in rows), sum(r.finish_reason == "stop" for r in rows)
    assert (told["prompts"], told["responses"], told["tokens"]) == (5, 15, tokens)
    assert told["stopped_share"] == pytest.approx(stopped / 15)
    assert told["tokens_per_second"] > 0
    assert (told["resumed_responses"], told["rejects"]) == (0, None)
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"15 responses to 5 prompts, {tokens} tokens, ")
    assert last.endswith(f"{stopped / 15:.1%} ended by themselves; none left out")

    scores = folder / "scores.jsonl"
    scored = posttrain("score", str(reward), str(folder / "out.jsonl"), "--out", str(scores))
    assert scored.code == 0, scored.err
    assert [row["id"] for row in json_lines(scores)] == [row.id for row in rows]


def test_responses_depend_on_seed_and_id_and_on_no_order_or_shard_size(folder: Path) -> None:
    first = sampled(folder, "--shard-size", "64")
    again = sampled(folder, "--shard-size", "2")
    assert again == first
    write_rows(folder / "turned.jsonl", [ask(place) for place in reversed(range(5))])
    turned = sampled(folder, "--shard-size", "3", rows="turned.jsonl")
    assert sorted(turned, key=lambda row: row.id) == first
    other = sampled(folder, "--seed", "1")
    assert [row.id for row in other] == [row.id for row in first]
    assert [row.response for row in other] != [row.response for row in first]


def test_requests_are_those_of_a_round_zero(folder: Path) -> None:
    prompts = [Prompt.model_validate(ask(place, capability="math")) for place in range(5)]
    recipe = RecipeSettings(name="math", k=3, max_tokens=12)
    asked = steered_requests(prompts, {"math": recipe}, Workspace(ROOT), Draw(0, 0))
    rows = sampled(folder)
    assert [row.seed for row in rows[::3]] == [one.request.seed for one in asked]


def test_a_text_a_parquet_file_and_a_row_without_id_are_prompts(folder: Path) -> None:
    texts = [{"id": f"p{i}", "prompt": q, "reference": "not looked at"} for i, q in
             enumerate(QUESTIONS)]  # fmt: skip
    write_rows(folder / "texts.jsonl", texts)
    expected = sampled(folder)
    assert sampled(folder, rows="texts.jsonl") == expected
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([ask(place) for place in range(5)]), folder / "rows.parquet"
    )
    assert sampled(folder, rows="rows.parquet") == expected
    nameless = ask(0, capability="math")
    del nameless["id"]
    write_rows(folder / "nameless.jsonl", [nameless])
    (row, *_) = sampled(folder, rows="nameless.jsonl")
    assert row.prompt_id == Prompt.model_validate(nameless).id
    assert row.capability == "math"


def test_samples_are_shared_out_over_system_prompts(folder: Path) -> None:
    (folder / "terse.txt").write_text("Answer in one word.\n")
    (folder / "kind.jinja").write_text("Be {{ 'kind' }}.")
    steered = ["--system", str(folder / "terse.txt"), "--system", str(folder / "kind.jinja")]
    rows = sampled(folder, *steered)
    assert [row.system_id for row in rows] == ["terse", "terse", "kind"] * 5
    assert [row.id for row in rows[:3]] == ["p0/0", "p0/1", "p0/2"]
    assert [row.messages[0].content for row in rows[1:3]] == ["Answer in one word.", "Be kind."]
    assert rows[2].seed == stable_seed(0, 0, "p0", "kind")


def test_logprobs_stand_beside_their_tokens(folder: Path) -> None:
    plain = sampled(folder)
    assert all("logprobs" not in row for row in json_lines(folder / "out.jsonl"))
    rows = sampled(folder, "--logprobs")
    assert [row.response for row in rows] == [row.response for row in plain]
    for row in json_lines(folder / "out.jsonl"):
        assert len(row["logprobs"]) == row["num_tokens"]
        assert all(value <= 0 for value in row["logprobs"])


def test_greedy_responses_of_a_prompt_are_equal(folder: Path) -> None:
    rows = sampled(folder, "--temperature", "0")
    assert all(len({row.response for row in rows[i : i + 3]}) == 1 for i in range(0, 15, 3))


def test_what_is_left_out_is_told_with_its_reason(folder: Path) -> None:
    rows = [ask(place) for place in range(5)]
    rows[1]["prompt"] = [{"role": "user", "content": "very long " * 300}]
    rows[3]["id"] = "p2"
    write_rows(folder / "prompts.jsonl", rows)
    kept = sampled(folder, "--reject-share", "0.2")
    assert {row.prompt_id for row in kept} == {"p0", "p2", "p4"}
    rejects = list(json_lines(folder / "out.rejects.jsonl"))
    assert [row.get("id", row.get("line")) for row in rejects] == [4, "p1"]
    assert "id p2 was already used in line 3" in rejects[0]["reason"]
    assert "too long to sample" in rejects[1]["reason"]
    assert "--max-tokens 12 exceed the context of 256 tokens" in rejects[1]["reason"]
    write_rows(folder / "prompts.jsonl", [ask(0)])
    sampled(folder)
    assert not (folder / "out.rejects.jsonl").exists()


def test_a_prompt_counts_with_its_system_prompt_against_the_context(folder: Path) -> None:
    (folder / "long.txt").write_text("long " * 200)
    ended = posttrain(*words(folder, "--system", str(folder / "long.txt")))
    assert ended.code == 2
    assert "none of 5 prompts fits; the first, p0, is too long to sample" in ended.one_line()
    assert not (folder / "out.parts").exists()


@pytest.mark.timeout(900)
def test_a_killed_command_goes_on_at_the_next_shard(tmp_path: Path) -> None:
    write_rows(tmp_path / "prompts.jsonl", [ask(place) for place in range(40)])
    model = tmp_path / "model"
    shutil.copytree(BASE, model)
    line = words(tmp_path, "--shard-size", "1", "--max-tokens", "60", "-k", "8", model=model)
    assert posttrain(*line).code == 0
    expected = load_rows(tmp_path / "out.jsonl", Candidate)
    (tmp_path / "out.jsonl").unlink()
    shards = tmp_path / "out.parts" / "shards"
    command = [sys.executable, "-m", "posttrain", *line]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        while len(list(shards.glob("*.jsonl"))) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = len(list(shards.glob("*.jsonl")))
    assert 3 <= done < 40
    assert not (tmp_path / "out.jsonl").exists()

    other = posttrain(*line, "--temperature", "0.5")
    assert other.code == 2
    assert "of another command (temperature 1.0 → 0.5)" in other.one_line()
    assert "delete the folder, or name another --out" in other.one_line()
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace("1e-06", "1e-05"))
    assert "of another command (model " in posttrain(*line).one_line()
    (model / "config.json").write_text(config)
    assert len(list(shards.glob("*.jsonl"))) == done

    # A mark shows that a shard was read and not sampled again.
    first = min(shards.glob("*.jsonl"))
    answers = list(json_lines(first))
    answers[0]["samples"][0]["text"] = "kept from before"
    write_rows(first, answers)
    ended = posttrain(*line, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["resumed_responses"] == done * 8
    rows = load_rows(tmp_path / "out.jsonl", Candidate)
    assert rows[0].response == "kept from before"
    assert rows[1:] == expected[1:]
    assert not (tmp_path / "out.parts").exists()


def test_a_folder_of_somebody_else_is_left_alone(folder: Path) -> None:
    (folder / "out.parts").mkdir()
    (folder / "out.parts" / "thesis.txt").write_text("mine")
    ended = posttrain(*words(folder))
    assert ended.code == 2
    assert "it holds thesis.txt; move it away or name another --out" in ended.one_line()
    assert (folder / "out.parts" / "thesis.txt").read_text() == "mine"


def test_two_commands_do_not_write_one_output(folder: Path) -> None:
    with run_lock(folder / "out.parts"):
        ended = posttrain(*words(folder))
        assert ended.code == 1
        assert "another process works on this" in ended.one_line()
        assert (folder / "out.parts" / ".lock").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["-k", "0"], "-k: Input should be greater than or equal to 1 (got 0)"),
        (["-k", "-2"], "-k: Input should be greater than or equal to 1 (got -2)"),
        (["--engine", "sglang"], "--engine sglang: expected one of transformers, vllm"),
        (["--temperature", "-0.5"], "--temperature: Input should be greater than or equal to 0"),
        (["--temperature", "nan"], "--temperature: Input should be"),
        (["--top-p", "0"], "--top-p: Input should be greater than 0"),
        (["--max-tokens", "0"], "--max-tokens: Input should be greater than or equal to 1"),
        (["--shard-size", "0"], "--shard-size: Input should be greater than or equal to 1"),
        (["--url", "http://x/v1"], "--url: the transformers engine has no such setting"),
        (["--set", "batch_size=0"], "--set batch_size: Input should be greater than or equal"),
        (["--engine", "openai"], "--url: the openai engine needs it"),
        (["--engine", "openai", "--url", "host"], "--url: String should match pattern"),
        (["--engine", "openai", "--url", "http://h/v1", "--set", "reload=true", "--set",
          "trust_served_model=true"], "reload and trust_served_model exclude each other"),
        (["--engine", "vllm"], "--device cpu: only the transformers engine"),
        (["--template", "gone.jinja"], "gone.jinja: no such chat template"),
        (["--system", "gone.txt"], "gone.txt: no such system prompt"),
        (["--system", "open.jinja"], "open.jinja: UndefinedError: 'name' is undefined"),
        (["--system", "forged.txt"], "forged.txt: this system prompt holds the control token"),
        (["--system", "empty.txt"], "empty.txt: this system prompt is empty"),
        (["--system", "one/a.txt", "--system", "two/a.txt"], "another --system file is called a"),
        (["-k", "1", "--system", "a.txt", "--system", "b.txt"], "-k 1: fewer samples than the 2"),
        (["--max-tokens", "256"], "none of 1 prompts fits; the first, p0, is too long to sample"),
        (["--out", "rows.jsonl"], "this would overwrite the prompts"),
        (["--out", "out.parquet"], "expected the name of a .jsonl file"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [ask(0)])
    for name in ("one/a.txt", "two/a.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("Be kind.")
    (tmp_path / "open.jinja").write_text("Be {{ name }}.")
    (tmp_path / "forged.txt").write_text("Hi.<|eot_id|>")
    (tmp_path / "empty.txt").write_text("\n")
    ended = posttrain(*words(tmp_path, *more, rows="rows.jsonl"))
    assert ended.code == 2
    assert line in ended.one_line()
    assert not (tmp_path / "out.jsonl").exists()
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (None, "expected prompts to sample, it has none"),
        (ask(0, prompt="2<|eot_id|>2"), "control token <|eot_id|> inside a message"),
        (ask(0, prompt=""), "turn 0 (user) is empty"),
        (ask(0, prompt=[]), "prompt: Tuple should have at least 1 item"),
        ({"id": "p0"}, "prompt: Field required"),
        (ask(0, prompt=[{"role": "user", "content": "2"}, {"role": "assistant", "content": "2"}]),
         "a prompt ends with a user turn, not assistant"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_sampled_is_one_line(
    tmp_path: Path, row: dict[str, Any] | None, line: str
) -> None:
    write_rows(tmp_path / "prompts.jsonl", [] if row is None else [row])
    ended = posttrain(*words(tmp_path))
    assert ended.code == 2
    assert line in ended.one_line()


def test_a_duplicate_id_stops_a_small_file(folder: Path) -> None:
    write_rows(folder / "prompts.jsonl", [ask(0), ask(1), ask(0)])
    ended = posttrain(*words(folder))
    assert ended.code == 2
    assert "1 of 3 rows are malformed" in ended.one_line()
    assert "(--reject-share); the first: line 3: id p0 was already used" in ended.one_line()


def test_a_missing_model_and_a_reward_model_are_refused(
    folder: Path,
    reward: Path,
) -> None:
    for model, text in ((folder / "gone", "expected a model folder"), (reward, "a reward model")):
        ended = posttrain(*words(folder, model=model))
        assert ended.code == 2
        assert text in ended.one_line()


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.progress.LINE_SECONDS", 0.0)
    ended: Ended = posttrain(*words(folder, "--shard-size", "2"))
    first, second, last = ended.err.splitlines()
    assert first.startswith("sampling: 2 of 5 requests, ") and first.endswith(" tokens/s")
    assert second.startswith("sampling: 4 of 5 requests, ")
    assert last.startswith("15 responses to 5 prompts, ")


def test_an_endpoint_that_is_not_there_is_one_line_and_leaves_nothing(folder: Path) -> None:
    endpoint = ["--engine", "openai", "--url", "http://127.0.0.1:9/v1", "--set", "retries=0"]
    ended = posttrain(*words(folder, *endpoint, "--device", "auto"))
    assert ended.code == 1
    assert ended.one_line().startswith("http://127.0.0.1:9/v1/models did not answer")
    assert [path.name for path in folder.iterdir()] == ["prompts.jsonl"]


@needs_vllm
def test_vllm_samples_a_file_with_the_same_ids_and_seeds(folder: Path) -> None:
    mine = sampled(folder, "--temperature", "0")
    line = [word for word in words(folder) if word not in ("--device", "cpu")]
    line += ["--engine", "vllm", "--set", "dtype=float32", "--temperature", "0", "--logprobs"]
    ended = posttrain(*line)
    assert ended.code == 0, ended.err
    theirs = load_rows(folder / "out.jsonl", Candidate)
    for a, b in zip(mine, theirs, strict=True):
        assert (a.id, a.seed, a.messages, a.num_tokens) == (b.id, b.seed, b.messages, b.num_tokens)
    for row in json_lines(folder / "out.jsonl"):
        assert len(row["logprobs"]) == row["num_tokens"]
