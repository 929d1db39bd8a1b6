"""A collection from the tasks that a round publishes to the preferences of the next one.

pytest tests/test_annotate.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from posttrain.annotate.answers import Answer
from posttrain.annotate.store import Store
from posttrain.rows import Strength
from tests.small_round import at, manifest, new_workspace, published

RULES = "annotator.rules=rounds/tiny/people.py"
SIMULATED = ["--set", "annotator.type=simulated", "--set", RULES]


def link_of(folder: Path, port: int) -> str:
    """What `annotate serve` prints, which is then killed."""
    words = ["annotate", "serve", "1", "--plan", "small", "--port", str(port)]
    command = [sys.executable, "-m", "posttrain", *words, "--workspace", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    link = process.stdout.readline().strip()
    process.kill()
    process.wait()
    return link


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose first round has published its tasks."""
    made = new_workspace(tmp_path_factory.mktemp("annotate") / "ws")
    assert at(made, "round", "1").code == 0
    return made


@pytest.fixture(scope="module")
def folder(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(untouched, tmp_path_factory.mktemp("annotate"))


def copied(workspace: Path, to: Path) -> Path:
    return Path(shutil.copytree(workspace, to / "ws"))


def judge_some(folder: Path, num: int, name: str = "ana") -> Store:
    """Somebody judges so many tasks on the page."""
    at(folder, "annotate", "add", "1", name)
    store = Store(folder / "annotations/small/round-1.sqlite")
    for _ in range(num):
        offered = store.next_task(name)
        assert offered is not None
        store.submit(name, offered.task.id, Answer("first", Strength.BETTER))
    return store


def test_a_round_waits_until_its_collection_is_closed(folder: Path) -> None:
    waiting = at(folder, "round", "2")
    assert waiting.code == 3, waiting.err
    link = at(folder, "annotate", "add", "1", "ana").out.strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:8800/a/[\w-]{32}", link)
    store = Store(folder / "annotations/small/round-1.sqlite")
    tasks = (published(folder, "round-1/tasks") / "tasks.jsonl").read_text().splitlines()
    told = json.loads(at(folder, "annotate", "status", "1", "--json").out)
    assert told == {
        "tasks": len(tasks),
        "judgments": 0,
        "wanted": len(tasks),
        "closed": False,
        "annotators": {},
        "agreement": {"tasks": 0, "same": None, "alpha": {"side": None, "strength": None}},
        "yet_to_begin": ["ana"],
    }
    offered = store.next_task("ana")
    assert offered is not None
    store.submit("ana", offered.task.id, Answer("first", Strength.BETTER))
    short = at(folder, "round", "2")
    assert short.code == 3 and "annotator.min_answered asks for 100%" in short.one_line()
    assert f"1 of {len(tasks)} judgments are in" in short.one_line()
    while (offered := store.next_task("ana")) is not None:
        store.submit("ana", offered.task.id, Answer("first", Strength.BETTER))
    closed = at(folder, "annotate", "close", "1")
    assert closed.code == 0 and closed.out.startswith(f"{len(tasks)} judgments in ")
    # Again, as after a kill between the two: the same file.
    file = folder / "annotations/small/round-1.jsonl"
    before = file.read_bytes()
    assert at(folder, "annotate", "close", "1").code == 0 and file.read_bytes() == before
    row = json.loads(before.splitlines()[0])
    assert row["annotator"] == "ana" and row["seconds"] >= 0 and row["at"].endswith("+00:00")
    assert row["first"] == row["choice"]
    ended = at(folder, "round", "2")
    assert ended.code == 0, ended.err
    judged = (published(folder, "round-2/preferences") / "judgments.jsonl").read_text()
    assert {json.loads(line)["annotator"] for line in judged.splitlines()} == {"ana"}


def test_the_minimum_of_the_plan_closes_a_collection(untouched: Path, tmp_path: Path) -> None:
    folder = copied(untouched, tmp_path)
    tasks = (published(folder, "round-1/tasks") / "tasks.jsonl").read_text().splitlines()
    store = judge_some(folder, len(tasks) - 1)
    words = ["--until", "preferences", "--set", "annotator.type=file", "--set"]
    assert at(folder, "round", "2", *words, "annotator.min_answered=1.0").code == 3
    assert not store.closed
    ended = at(folder, "round", "2", *words, "annotator.min_answered=0.5")
    assert ended.code == 0, ended.err
    assert f"the collection of round 1 is closed: {len(tasks) - 1} judgments" in ended.out
    assert store.closed
    books = manifest(folder, "round-2/preferences")
    assert books["funnel"][0]["dropped"]["unanswered"] == 1
    assert books["funnel"][0]["rows_in"] == len(tasks)
    assert books["metrics"]["annotation"]["annotators"]["ana"]["judgments"] == len(tasks) - 1


def test_a_file_that_somebody_made_is_never_replaced(untouched: Path, tmp_path: Path) -> None:
    folder = copied(untouched, tmp_path)
    file = folder / "annotations/small/round-1.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}\n")
    ended = at(folder, "annotate", "close", "1")
    assert ended.code == 2 and "is there already" in ended.one_line()
    assert file.read_text() == "{}\n"


def test_tasks_that_are_gone_are_made_again_beside_their_collection(
    untouched: Path, tmp_path: Path
) -> None:
    folder = copied(untouched, tmp_path)
    store = judge_some(folder, 1)
    shutil.rmtree(published(folder, "round-1/tasks"))
    ended = at(folder, "run")
    assert ended.code == 3, ended.err
    assert (published(folder, "round-1/tasks") / "tasks.jsonl").is_file()
    assert len(store.judgments()) == 1


def test_a_collection_that_somebody_closes_goes_on_with_what_there_is(
    untouched: Path, tmp_path: Path
) -> None:
    folder = copied(untouched, tmp_path)
    store = judge_some(folder, 2)
    # Killed between closing and writing: the round writes what the store holds.
    store.close()
    ended = at(folder, "round", "2", "--until", "preferences")
    assert ended.code == 0, ended.err
    file = folder / "annotations/small/round-1.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["annotator"] for row in rows[:2]] == ["ana", "ana"]
    assert {row["annotator"] for row in rows[2:]} == {"nobody"}
    kept = published(folder, "round-2/preferences") / "judgments.jsonl"
    assert len(kept.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["status", "2"], "round 2 publishes no tasks"),
        (["status", "9"], "round 9 publishes no tasks"),
        (["add", "1", " "], "1 to 100 characters"),
        (
            [
                "status",
                "1",
                "--set",
                "annotator.type=simulated",
                "--set",
                "annotator.rules=rounds/tiny/people.py",
            ],
            "people are asked where it is `file`",
        ),
        (["status", "1", "--run", "other"], "has not published its tasks yet"),
    ],
)
def test_what_cannot_be_collected_is_told(folder: Path, words: list[str], reason: str) -> None:
    ended = at(folder, "annotate", *words)
    assert ended.code == 2 and reason in ended.one_line()


def test_a_page_for_others_needs_links_first(folder: Path, tmp_path: Path) -> None:
    (folder / "annotations" / "small" / "round-1.sqlite").rename(tmp_path / "kept")
    ended = at(folder, "annotate", "serve", "1", "--host", "0.0.0.0")
    assert ended.code == 2 and "nobody has a link yet" in ended.one_line()


def test_a_link_outlives_the_server(untouched: Path, tmp_path: Path) -> None:
    folder = copied(untouched, tmp_path)
    port = 9800 + os.getpid() % 1000
    link = link_of(folder, port)
    assert link.startswith(f"http://127.0.0.1:{port}/a/") and link_of(folder, port) == link
    secret = folder / "annotations/small/round-1.link"
    assert secret.stat().st_mode & 0o077 == 0


def test_the_server_answers_its_printed_link(folder: Path) -> None:
    for old in (folder / "annotations" / "small").glob("round-1.sqlite*"):
        old.unlink()
    port = 8800 + os.getpid() % 1000
    words = ["annotate", "serve", "1", "--plan", "small", "--port", str(port)]
    command = [sys.executable, "-m", "posttrain", *words, "--workspace", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        assert link.startswith(f"http://127.0.0.1:{port}/a/")
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        deadline = time.monotonic() + 60
        while True:
            try:
                page = opener.open(link).read().decode()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert "Which response is better" in page and "me: 0 done" in page
    finally:
        process.terminate()
        process.wait(20)
