"""Bad input at the command line: one line that says what to do, the exit code, and no traceback.

Every command goes through `main()`; one small round is run for all tests, and each test that
damages something works on a copy.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from posttrain.cli.main import main

PLAN = """
base: rounds/tiny/base
splits: {dev: 0.3, test: 0.3}
mix: {math: 1.0}
recipes: {math: {k: 2, max_tokens: 16}}
bootstrap: {human: [data/human.jsonl]}
rounds:
  - prompts: [{type: hook, recipe: math, num: 24, options: {levels: [1]}}]
    preferences: [data/pairs.jsonl]
    tasks: [{type: hook, recipe: math, num: 6, options: {levels: [1]}}]
  - prompts: [{type: hook, recipe: math, num: 24, options: {levels: [1]}}]
reward: {max_steps: 1, batch_size: 4, max_length: 128}
sft: {max_steps: 1, batch_size: 4, max_length: 128}
dpo: {max_steps: 1, batch_size: 4, max_length: 128}
evaluation:
  num_samples: 1
  sources: [{type: hook, recipe: math, num: 30, options: {levels: [1]}}]
pipeline:
  clean: {rules: [drop_control_tokens, drop_empty]}
  dedup: {threshold: 1.0, max_loss: 1.0}
resources: {min_free_gib: 0}
"""
SKIP_TASKS = ("--set", "rounds.1.preferences=[data/bad.jsonl]")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def one_line(self) -> str:
        """The only line on the standard error."""
        assert self.err.count("\n") == 1, self.err
        return self.err.strip().removeprefix("posttrain: ")


def posttrain(*arguments: str) -> Ended:
    """Run a command; what it does not catch fails the test."""
    out, err, argv, code = StringIO(), StringIO(), sys.argv, 0
    handler = signal.getsignal(signal.SIGTERM)
    sys.argv = ["posttrain", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return Ended(code, out.getvalue(), err.getvalue())


def at(folder: Path, command: str, *arguments: str) -> Ended:
    """Run a command on the small plan of a workspace."""
    return posttrain(command, *arguments, "--plan", "small", "--workspace", str(folder))


def pair(number: int, **fields: Any) -> dict[str, Any]:
    sides = {"chosen": f"{number}", "rejected": f"sure! it may be {number + 1}"}
    made = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
    prompt = [{"role": "user", "content": f"{number}+0=?"}]
    row = {"id": f"p{number}", "prompt": prompt, "strength": "better", "capability": "math"}
    return {**row, **made, **fields}


def write_lines(path: Path, rows: list[dict[str, Any] | bytes]) -> None:
    made = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(made))


def new_workspace(folder: Path) -> Path:
    assert posttrain("init", str(folder)).code == 0
    (folder / "rounds" / "small.yaml").write_text(PLAN)
    human = (folder / "rounds/tiny/data/human.jsonl").read_text().splitlines()[:24]
    (folder / "data" / "human.jsonl").write_text("\n".join(human) + "\n")
    write_lines(folder / "data" / "pairs.jsonl", [pair(number) for number in range(20)])
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace in which nothing has run."""
    return new_workspace(tmp_path / "ws")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose first round is finished; not to be changed."""
    folder = new_workspace(tmp_path_factory.mktemp("finished") / "ws")
    ended = at(folder, "round", "1")
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "ws")
    return tmp_path / "ws"


def published(folder: Path, name: str = "") -> Path:
    return folder / "runs" / "small" / name


def manifest(folder: Path, step: str) -> dict[str, Any]:
    return json.loads((published(folder, step) / "manifest.json").read_text())


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every published manifest of a run."""
    paths = sorted(published(folder).glob("round-*/*/manifest.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# ---------------------------------------------------------------- plans, recipes and settings


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


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _spoil(path: Path) -> None:
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


@pytest.mark.parametrize(
    ("file", "damage", "code"),
    [
        ("model.safetensors", _cut, 1),
        ("model.safetensors", _spoil, 1),
        ("model.safetensors", Path.unlink, 2),
        ("config.json", _cut, 2),
        ("config.json", Path.unlink, 2),
        ("tokenizer.json", _cut, 2),
        ("tokenizer.json", Path.unlink, 2),
        ("tokenizer_config.json", _cut, 2),
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
        (("round", "1", "--from", "dop"), "--from dop: no such step; this round has round-0/held"),
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
            "responses too similar: 0.9",
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
    assert told["p11"]["reason"].startswith("responses too similar: 0.9")


def test_too_many_malformed_rows_publish_nothing(run: Path) -> None:
    write_lines(run / "data" / "bad.jsonl", [pair(1), b"{", pair(2)])
    ended = at(run, "round", "2", "--until", "preferences", *SKIP_TASKS)
    assert ended.code == 2
    line = ended.one_line()
    assert "bad.jsonl: 1 of 3 rows are malformed, more than the allowed 5%" in line
    assert "line 2: no valid JSON" in line
    assert not published(run, "round-2/preferences").exists()
    assert "round-2/preferences      to run" in at(run, "plan", "2", *SKIP_TASKS).out


def test_a_prompt_longer_than_the_context_is_named(run: Path) -> None:
    prompt = [{"role": "user", "content": "7" * 600}]
    row = {"id": "long", "prompt": prompt, "capability": "math"}
    write_lines(run / "data" / "long.jsonl", [row])
    tasks = ("--set", "rounds.0.tasks=[{path: data/long.jsonl}]", "--redo-stale")
    ended = at(run, "round", "1", "--from", "tasks", *tasks)
    assert ended.code == 2
    assert "long" in ended.one_line()
    assert "exceed the model's context of 256 tokens; shorten the prompt" in ended.one_line()
    assert not published(run, "round-1/tasks").exists()


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


# ---------------------------------------------------------------- damage, drift and other processes


def test_a_flipped_bit_is_found_by_verify(run: Path) -> None:
    assert at(run, "status", "--verify").code == 0
    path = published(run, "round-1/dpo/model/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    ended = at(run, "status", "--verify")
    assert ended.code == 1
    assert ended.one_line() == "round-1/dpo/model/model.safetensors: its content changed"
    out = at(run, "export", "--out", str(run / "model"))
    assert out.code == 1
    assert "model/model.safetensors" in out.one_line()
    assert not (run / "model").exists()


@pytest.mark.parametrize("damage", [_cut, Path.unlink])
def test_a_truncated_or_missing_file_is_noticed_by_every_command(
    run: Path, damage: Callable[[Path], None]
) -> None:
    damage(published(run, "round-1/sample/responses.jsonl"))
    before = snapshot(run)
    commands = [
        ("plan", "1"),
        ("status",),
        ("status", "--verify"),
        ("round", "1"),
        ("round", "2"),
        ("run",),
        ("gc",),
        ("export", "--out", str(run / "model")),
        ("why", "nonsense"),
    ]
    for command in commands:
        ended = at(run, *command)
        assert ended.code == 1, (command, ended)
        assert "sample/responses.jsonl: " in ended.one_line()
    assert snapshot(run) == before


def test_a_manifest_that_cannot_be_read_is_damage(run: Path) -> None:
    _cut(published(run, "round-1/rm/manifest.json"))
    ended = at(run, "plan", "1")
    assert ended.code == 1
    assert "round-1/rm: published without a readable manifest" in ended.one_line()


def test_drift_is_shown_refused_and_set_aside_when_asked(run: Path) -> None:
    new = ("--set", "dpo.beta=0.2")
    planned = {line.split()[0]: line for line in at(run, "plan", "1", *new).out.splitlines()}
    assert planned["round-1/dpo-a"].split(maxsplit=2)[1:] == ["stale", "dpo.beta 0.1 → 0.2"]
    assert planned["round-1/sft"].split()[1:] == ["done"]
    assert planned["round-1/gate"].split()[1] == "stale"
    before = snapshot(run)
    refused = at(run, "round", "1", *new)
    assert refused.code == 2
    assert "round-1/dpo-a was made with other settings: dpo.beta 0.1 → 0.2" in refused.one_line()
    assert snapshot(run) == before
    redone = at(run, "round", "1", *new, "--redo-stale", "--from", "dpo-a", "--until", "dpo-a")
    assert redone.code == 0, redone.err
    old = before["runs/small/round-1/dpo-a/manifest.json"]
    assert manifest(run, "round-1/dpo-a")["payload"]["settings"]["dpo"]["beta"] == 0.2
    aside = list(published(run, ".replaced/round-1").glob("dpo-a-*/manifest.json"))
    assert [path.read_bytes() for path in aside] == [old]


def test_circumstances_make_nothing_stale(run: Path) -> None:
    other = ("resources.threads=2", "sampling.shard_size=3", "title=another", "keep.policy=2")
    ended = at(run, "plan", "1", *(part for one in other for part in ("--set", one)))
    assert {line.split()[1] for line in ended.out.splitlines()} == {"done"}


HOLDER = """
import sys
from pathlib import Path
from posttrain.steps.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_works_on_the_run(run: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(published(run))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for command in (("round", "1"), ("run",), ("gc",)):
            ended = at(run, *command)
            assert ended.code == 1
            assert "another process works on this run (host " in ended.one_line()
            assert f"process {holder.pid}," in ended.one_line()
        # Reading is no work.
        assert at(run, "plan", "1").code == 0
    assert at(run, "round", "1").code == 0


def test_gc_removes_what_keep_lets_go_and_the_run_goes_on(run: Path) -> None:
    def weights() -> set[str]:
        found = published(run).rglob("*.safetensors")
        return {str(path.relative_to(published(run))) for path in found}

    before, manifests = weights(), snapshot(run)
    assert at(run, "gc", "--set", "keep.members=true").code == 0
    kept_members = weights()
    assert {name for name in before if "-a/" in name or "-b/" in name} <= kept_members
    dry = at(run, "gc", "--dry-run")
    assert weights() == kept_members
    ended = at(run, "gc")
    gone = before - weights()
    assert gone == {
        f"round-1/{name}/model/model.safetensors"
        for name in ("rm-a", "rm-b", "sft-a", "sft-b", "dpo-a", "dpo-b")
    } | (before - kept_members)
    assert dry.out.replace("would remove", "removed") == ended.out
    assert snapshot(run) == manifests
    assert at(run, "gc").out == "0 files, 0.0 MiB\n"
    assert at(run, "status", "--verify").code == 0
    assert {line.split()[1] for line in at(run, "plan", "1").out.splitlines()} == {"done"}
    assert at(run, "round", "1").code == 0
    assert at(run, "round", "2").code == 3
    assert at(run, "export", "--out", str(run / "model")).code == 0
    again = at(run, "export", "--out", str(run / "model"))
    assert again.code == 2
    assert "already there; name a new folder" in again.one_line()
    redo = at(
        run,
        "round",
        "1",
        "--from",
        "sft",
        "--redo-stale",
        "--set",
        "sft.average.method=weighted",
        "--set",
        "sft.average.weights={a: 2, b: 1}",
    )
    assert redo.code == 1
    assert "were removed by posttrain gc" in redo.one_line()
