"""`posttrain dedup`: rows stay as they are, every dropped one names its keeper, input is checked.

pytest tests/test_dedup_files.py
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from posttrain.dedup.minhash import band_keys, jaccard, near_copies, shingles
from posttrain.dedup_files import dedup_file
from posttrain.errors import BadInput, StepFailed
from posttrain.settings.data_options import DedupFileSettings
from posttrain.tables import json_lines
from tests.small_round import posttrain

WORDS = (
    "alpha beta gamma delta river stone cloud green happy little ancient modern house garden table "
    "window music paper light winter summer bridge candle ocean pepper silver thunder valley"
).split()


def texts(num: int, seed: int = 0, length: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for _ in range(num)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def orthogonal(num: int) -> np.ndarray:
    return np.eye(num, dtype=np.float32)


def saved(path: Path, vectors: np.ndarray) -> Path:
    np.save(path, vectors)
    return path


def test_wording_is_compared_in_runs_of_words() -> None:
    one, other = "a b c d e f g h i j", "a b c d e f g h i k"
    assert jaccard(shingles(one, 5), shingles(other, 5)) == 5 / 7
    assert jaccard(shingles("A  B c\nd E", 5), shingles("a b c d e", 5)) == 1
    assert jaccard(shingles("a", 5), shingles("b", 5)) == 0
    # A text that is shorter than a run is one shingle, wherever it stands in a batch.
    batch = ["", "a", one, "a b", other]
    alone = np.concatenate([band_keys([text], 5) for text in batch])
    assert (band_keys(batch, 5) == alone).all()


def test_near_copies_are_those_of_brute_force() -> None:
    rng = random.Random(1)
    rows = texts(150, length=60)
    for original in rows[:100]:
        words = original.split()
        for _ in range(rng.choice((0, 1, 2, 6))):
            words[rng.randrange(len(words))] = "changed"
        rows.append(" ".join(words))
    order = rng.sample(range(250), 250)
    found = near_copies(band_keys(rows, 5), order, lambda row: shingles(rows[row], 5), 0.8)
    expected, kept = [], []
    for row in order:
        own = shingles(rows[row], 5)
        best = max((jaccard(own, shingles(rows[other], 5)) for other in kept), default=0.0)
        if best >= 0.8:
            expected.append((row, best))
        else:
            kept.append(row)
    assert [(one.row, one.similarity) for one in found] == expected
    assert len(expected) > 25
    assert {one.keeper for one in found} <= set(kept)


def test_each_step_drops_its_own_and_kept_lines_stay_as_they_were(tmp_path: Path) -> None:
    first, second, third = texts(3, seed=2)
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": first, "mine": [1, {"x": None}]},
        {"id": 7, "text": f"{first}  \n"},
        {"id": "copy", "text": f"{second} indeed", "score": 0.5, "source": "s"},
        {"text": second, "score": 2, "quality": 1, "source": "s"},
        {"id": "third", "text": third, "score": 0.1},
        {"id": "near", "text": "words of its own", "score": 0.0, "topic": "t"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    vectors = orthogonal(6)
    vectors[5] = vectors[4]
    settings = DedupFileSettings(vectors=saved(tmp_path / "v.npy", vectors))
    summary = dedup_file(settings, path, tmp_path / "out")
    lines = path.read_text().splitlines()
    assert (tmp_path / "out/kept.jsonl").read_text().splitlines() == [lines[i] for i in (0, 3, 4)]
    dropped = list(json_lines(tmp_path / "out/dropped.jsonl"))
    told = {row["id"]: (row["step"], row["keeper"]) for row in dropped}
    unnamed = told["copy"][1]
    assert told == {
        "7": ("exact_duplicates", "a"),
        "copy": ("minhash", unnamed),
        "near": ("semantic_dedup", "third"),
    }
    assert [row.get("cosine", row.get("jaccard")) for row in dropped][2] == 1.0
    assert (summary["rows"], summary["kept"], summary["dropped"]) == (
        6,
        3,
        {"exact_duplicates": 1, "minhash": 1, "semantic_dedup": 1},
    )
    assert summary["loss"]["topic"] == {"t": {"rows": 1, "loss": 1.0}}
    with pytest.raises(StepFailed, match=r"100\.0% of the rows of topic t"):
        dedup_file(settings.model_copy(update={"max_loss": 0.5}), path, tmp_path / "out")
    # What an earlier call wrote is still there, whole.
    assert len(list(json_lines(tmp_path / "out/kept.jsonl"))) == 3


def test_rows_of_a_parquet_file_are_the_same(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": text} for i, text in enumerate([*texts(4), *texts(2)])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    write(tmp_path / "rows.jsonl", rows)
    settings = DedupFileSettings(vectors=saved(tmp_path / "v.npy", orthogonal(6)))
    kept = []
    for name in ("rows.parquet", "rows.jsonl"):
        assert dedup_file(settings, tmp_path / name, tmp_path / name[5:])["kept"] == 4
        kept.append(list(json_lines(tmp_path / name[5:] / "kept.jsonl")))
    assert kept[0] == kept[1] == rows[:4]


def test_rows_are_embedded_once_and_dialogs_count_without_system_prompts(tmp_path: Path) -> None:
    def dialog(user: str, answer: str, system: str) -> dict[str, Any]:
        turns = (("system", system), ("user", user), ("assistant", answer))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    long = "You answer every question in the manner of an old sailor. " * 60
    rows = [
        dialog("Name a river.", "The Rhine.", long),
        dialog("What is 12 + 34?", "46", long),
        dialog("Name a river!", "The Rhine.", long),
    ]
    path = write(tmp_path / "rows.jsonl", [{"id": str(i), **row} for i, row in enumerate(rows)])
    summary = dedup_file(DedupFileSettings(jaccard=0), path, tmp_path / "out")
    assert [row["id"] for row in json_lines(tmp_path / "out/kept.jsonl")] == ["0", "1"]
    assert "minhash" not in summary["dropped"]
    cached = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/.embeddings").rglob("*.npz")}
    dedup_file(DedupFileSettings(jaccard=0, threshold=0.99), path, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in cached} == cached
    assert len(cached) == 1


@pytest.mark.parametrize(
    ("vectors", "line"),
    [
        (orthogonal(3), "3 vectors for the 2 rows"),
        (orthogonal(2) * 0, "row 0 has length 0"),
        (orthogonal(2) * np.nan, "row 0 is not finite"),
        (orthogonal(2)[0], "expected a matrix of rows, got shape (2,)"),
        (np.eye(2, dtype=np.int64), "floating-point"),
        (np.array([{}, {}]), "no readable .npy file"),
    ],
)
def test_vectors_that_do_not_fit_are_one_line(
    tmp_path: Path, vectors: np.ndarray, line: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": text} for text in texts(2)])
    saved(tmp_path / "v.npy", vectors)
    ended = posttrain(
        "dedup", str(path), "--out", str(tmp_path / "o"), "--vectors", str(tmp_path / "v.npy")
    )
    assert ended.code == 2
    assert line in ended.one_line()
    assert not (tmp_path / "o" / "kept.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gone.jsonl"], "gone.jsonl: no such file"),
        (["rows.txt"], "expected a .jsonl or .parquet file"),
        (["empty.jsonl"], "expected rows, it has none"),
        (["bad.jsonl"], "2 of 2 rows are malformed, more than the allowed 5% (--reject-share)"),
        (["rows.jsonl", "--threshold", "0"], "--threshold: Input should be greater than 0"),
        (["rows.jsonl", "--embedder", "nowhere"], "expected minilm or the folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, words: list[str], line: str) -> None:
    write(tmp_path / "rows.jsonl", [{"text": text} for text in texts(2)])
    write(tmp_path / "rows.txt", [])
    write(tmp_path / "empty.jsonl", [])
    write(tmp_path / "bad.jsonl", [{"id": "a"}, {"text": "  "}])
    path = tmp_path / words[0]
    ended = posttrain("dedup", str(path), "--out", str(tmp_path / "o"), *words[1:])
    assert ended.code == 2
    assert line in ended.one_line()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": text} for text in texts(2)])
    with pytest.raises(BadInput, match=r"it holds rows\.jsonl; name a new folder"):
        dedup_file(DedupFileSettings(), path, tmp_path)
