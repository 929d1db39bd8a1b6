"""`posttrain recipes`: list, show, scaffold and try one; recipes of third parties."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.small_round import Ended, posttrain

ROOT = Path(__file__).parent.parent
BASE = ROOT / "rounds" / "tiny" / "base"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trial") / "ws"
    assert posttrain("init", str(made)).code == 0
    return made


def recipes(folder: Path, *words: str) -> Ended:
    return posttrain("recipes", *words, "--workspace", str(folder))


def tried(folder: Path, *words: str) -> dict[str, Any]:
    ended = recipes(folder, "test", *words, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_a_new_recipe_runs_at_once_and_again_from_its_transcript(
    folder: Path, tmp_path: Path
) -> None:
    assert recipes(folder, "new", "adding").code == 0
    listed = json.loads(recipes(folder, "ls", "--json").out)
    assert {"name": "adding", "origin": "workspace"}.items() <= next(
        row for row in listed if row["name"] == "adding"
    ).items()
    transcript = str(tmp_path / "said.jsonl")
    steps = tried(folder, "adding", "--model", str(BASE), "--transcript", transcript, "-n", "3")
    assert list(steps) == ["prompts", "sample", "verify", "revise", "synthesize"]
    assert [len(steps[name]) for name in ("prompts", "sample")] == [3, 6]
    failed = sum(not row["passed"] for row in steps["verify"])
    assert len(steps["revise"]) == failed
    assert not any("problem" in row for rows in steps.values() for row in rows)
    assert tried(folder, "adding", "--transcript", transcript, "-n", "3") == steps
    other = tried(folder, "adding", "--transcript", transcript, "-n", "3", "--seed", "1")
    assert all("not in the transcript" in row["problem"] for row in other["sample"])
    shown = recipes(folder, "test", "adding", "--transcript", transcript, "-n", "3")
    assert "verify: " in shown.out


def test_every_shipped_recipe_can_be_tried(folder: Path) -> None:
    for name in ("math", "code", "multilingual", "tool_use", "steerability", "factuality"):
        steps = tried(
            folder, name, "--model", str(BASE), "-n", "2", "--set", "max_tokens=24", "--set", "k=2"
        )
        assert len(steps["verify"]) == len([row for row in steps["sample"] if row["text"].strip()])


def test_a_failing_hook_is_one_row(folder: Path) -> None:
    assert recipes(folder, "new", "failing").code == 0
    hooks = folder / "recipes" / "failing" / "hooks.py"
    text = hooks.read_text()
    hooks.write_text(
        text.replace(
            "for place, reply in", "assert prompt is None, 'never'\n    for place, reply in"
        )
    )
    steps = tried(folder, "failing", "--model", str(BASE), "-n", "2", "--set", "k=0")
    assert [row["problem"] for row in steps["synthesize"]] == ["AssertionError: never"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test", "maths", "--model", str(BASE)], "did you mean math"),
        (["test", "math"], "--transcript FILE of an earlier trial"),
        (["test", "general", "--model", str(BASE)], "makes no prompts"),
        (["new", "Upper"], "expected small letters"),
        (["new", "math"], "already there"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, words: list[str], message: str) -> None:
    ended = recipes(folder, *words)
    assert ended.code == 2
    assert message in ended.one_line()


def test_a_third_partys_package_is_a_recipe_like_any_other(folder: Path, tmp_path: Path) -> None:
    """Built and installed by pip, found by its entry point."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    install += ["--no-build-isolation", "--target", str(tmp_path / "site")]
    package = tmp_path / "package"
    subprocess.run(["cp", "-r", str(ROOT / "tests/plugin_package"), str(package)], check=True)
    subprocess.run([*install, str(package)], check=True, capture_output=True)

    def run(*words: str) -> Any:
        command = [sys.executable, "-m", "posttrain", "recipes", *words, "--json"]
        path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
        ended = subprocess.run(
            [*command, "--workspace", str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(ended.stdout)

    (row,) = [row for row in run("ls") if row["name"] == "rhymes"]
    assert row == {
        "name": "rhymes",
        "origin": "posttrain-rhymes",
        "summary": "Words that end alike.",
    }
    steps = run("test", "rhymes", "--model", str(BASE), "-n", "2", "--set", "max_tokens=8")
    poems = [row["example"]["messages"][-1]["content"] for row in steps["synthesize"]]
    assert poems == ["light and bght", "stone and bone"]
