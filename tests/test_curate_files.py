"""`posttrain curate`: what is kept, changed and dropped of a file, and that columns stay.

pytest tests/test_curate_files.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.tables import json_lines, read_json
from tests.small_round import posttrain

LIGHT = [
    "--set",
    "order=[clean,exact_duplicates,minhash,quality,difficulty,balance,decontaminate,mix]",
]


def dialog(user: str, answer: str, **columns: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **columns}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def curated(folder: Path, rows: list[Any], *more: str) -> tuple[list[dict[str, Any]], Any, Any]:
    """What is kept, what is dropped, and the summary."""
    path = write(folder / "rows.jsonl", rows)
    ended = posttrain("curate", path, "--out", str(folder / "out"), *more, "--json")
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert summary == read_json(folder / "out" / "summary.json")
    kept, dropped = (list(json_lines(folder / "out" / f"{n}.jsonl")) for n in ("kept", "dropped"))
    assert len(kept) + len(dropped) == summary["rows"]
    return kept, dropped, summary


def test_columns_stay_and_what_changes_says_so(tmp_path: Path) -> None:
    rows = [
        dialog("What is 2+2?", "Sure! 4 😀", id=7, mine={"x": None}),
        dialog("Name a river.", "The Rhine.", id="b", capability="facts", edits=["by hand"]),
        dialog("Name a river.", "The Rhine. ", id="c", capability="facts", score=2.0),
        dialog("What is 3+3?", "<|eot_id|>", id="d"),
        dialog("What is the capital of France?", "Paris", id="e"),
        {"id": "f", "messages": []},
    ]
    heldout = write(
        tmp_path / "eval.jsonl", [{"id": "q9", "prompt": "What is the capital of France?"}]
    )
    kept, dropped, summary = curated(
        tmp_path, rows, *LIGHT, "--heldout", heldout, "--reject-share", "0.5"
    )
    first, second = kept
    answer = {"role": "assistant", "content": "4"}
    edits = ["drop_boilerplate_opening", "strip_emoji"]
    assert first == {**rows[0], "messages": [rows[0]["messages"][0], answer], "edits": edits}
    assert second == rows[2]
    told = {row.get("id"): (row["step"], row["reason"]) for row in dropped}
    assert told.pop(None)[0] == "read"
    assert told == {
        "d": ("clean", "drop_control_tokens: control token in the text"),
        "b": ("exact_duplicates", "equal dialog"),
        "e": ("decontaminate", "held-out prompt"),
    }
    evidence = {row.get("id"): row for row in dropped}
    assert (evidence["b"]["keeper"], evidence["e"]["heldout"]) == ("c", "q9")
    assert (summary["malformed"], summary["heldout"], summary["mix"]) == (1, 1, {})


def test_equal_rows_without_ids_are_duplicates_and_not_malformed(tmp_path: Path) -> None:
    rows = [dialog("a?", "a"), dialog("b?", "b"), dialog("a?", "a")]
    kept, (gone,), summary = curated(tmp_path, rows, *LIGHT)
    assert kept == rows[:2]
    assert (gone["step"], gone["keeper"]) == ("exact_duplicates", gone["id"])
    assert summary["malformed"] == 0


def test_a_mix_repeats_rows_without_writing_them_twice(tmp_path: Path) -> None:
    rows = [dialog(f"{i}?", f"{i}", id=f"m{i}", capability="math") for i in range(6)]
    rows += [dialog(f"{i}!", f"{i}", id=f"c{i}", capability="code") for i in range(2)]
    kept, dropped, summary = curated(
        tmp_path, rows, *LIGHT, "--mix", "math=0.5", "--mix", "code=0.5"
    )
    assert {row["id"]: row.get("repeat", 1) for row in kept} == {
        **{f"m{i}": 1 for i in range(6)},
        "c0": 3,
        "c1": 3,
    }
    assert not dropped
    assert summary["mix"]["code"] == {"wanted": 0.5, "achieved": 0.5, "rows": 2, "examples": 6}


def test_scores_and_grades_choose_where_there_are_any(tmp_path: Path) -> None:
    rows = [dialog(f"{i}?", f"{i}", id=f"r{i}", score=float(i)) for i in range(8)]
    rows[0]["grade"] = {"score": 3, "maximum": 3}
    rows += [dialog("h?", "h", id="person", human=True), dialog("u?", "u", id="unscored")]
    kept, _, _ = curated(tmp_path, rows, *LIGHT)
    assert [row["id"] for row in kept] == ["r0", "r6", "r7", "person", "unscored"]
    kept, dropped, _ = curated(tmp_path, rows, *LIGHT, "--set", "quality.unscored=drop")
    assert "unscored" not in {row["id"] for row in kept}
    assert "neither score nor grade" in {row["reason"] for row in dropped}


def test_the_whole_pipeline_runs_with_the_shipped_embedder(tmp_path: Path) -> None:
    rows = [
        dialog("Which river flows through Vienna?", "The Danube flows through Vienna.", id="a"),
        dialog("What is the speed of light?", "About 300,000 km a second.", id="b"),
        dialog("Which river flows through Vienna ?", "The Danube flows through Vienna!", id="c"),
        dialog("How do I sort a list in Python?", "Call sorted on it.", id="d"),
        dialog("Who wrote Faust?", "Goethe wrote it.", id="e"),
    ]
    kept, (gone,), summary = curated(tmp_path, rows)
    assert {row["id"] for row in kept} | {gone["id"]} == set("abcde")
    assert {gone["id"], gone["keeper"]} == {"a", "c"}
    assert gone["step"] in ("minhash", "semantic_dedup")
    assert [step["step"] for step in summary["steps"]][-1] == "mix"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gone.jsonl"], "gone.jsonl: no such file"),
        (["bad.jsonl"], "1 of 1 rows are malformed"),
        (["rows.jsonl", "--set", "dedup.treshold=1"], "did you mean threshold?"),
        (["rows.jsonl", "--mix", "math"], "--mix: Input should be a valid number"),
        (["rows.jsonl", "--heldout", "gone.jsonl"], "gone.jsonl: no such file"),
        (["rows.jsonl", "--pipeline", "gone.yaml"], "gone.yaml: cannot be read"),
        (["rows.jsonl", "--set", "clean.rules=[shout]"], "no function shout among the rules"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", [dialog("a?", "a", id="a")])
    write(tmp_path / "bad.jsonl", [{"text": "a"}])
    ended = posttrain("curate", *words, "--out", "o")
    assert ended.code == 2
    assert line in ended.one_line()
    assert not list((tmp_path / "o").glob("*.json*"))


def test_all_rows_dropped_is_told_with_the_steps(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [dialog("a?", "<|eot_id|>", id="a")])
    ended = posttrain("curate", path, "--out", str(tmp_path / "o"), *LIGHT)
    assert ended.code == 1
    assert "all rows dropped before exact_duplicates: clean 1 → 0" in ended.one_line()
