"""Tables: nothing malformed is skipped silently, and a file is whole or absent."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain import tables
from posttrain.errors import BadInput
from posttrain.rows import Example, Preference, Prompt
from posttrain.tables import load_rows, read_json, read_table, write_json, write_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
CONTROL = ("<|eot_id|>", "<|begin_of_text|>")


def prompt(text: str, **more: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": text}], "capability": "math", **more}


def lines(path: Path, *raw: bytes | dict[str, Any]) -> Path:
    """A file with one thing a line, as it comes."""
    made = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in raw]
    path.write_bytes(b"\n".join(made) + b"\n")
    return path


def only_reject(path: Path) -> tuple[int, str]:
    table = read_table(path, Prompt, CONTROL)
    assert len(table.rejects) == 1
    assert table.rejects[0].file == path.name
    return table.rejects[0].line, table.rejects[0].reason


@given(
    rows=st.lists(
        st.tuples(TEXT, TEXT, st.dictionaries(TEXT.map(lambda t: "x" + t), TEXT)), max_size=6
    )
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_written_is_read_again(
    tmp_path: Path, rows: list[tuple[str, str, dict[str, str]]]
) -> None:
    """Line separators of Unicode inside a text are no ends of lines."""
    made = [
        Example.model_validate(
            {
                "id": f"e{i}",
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ],
                "capability": "math",
                **extra,
            }
        )
        for i, (question, answer, extra) in enumerate(rows)
    ]
    path = tmp_path / "rows.jsonl"
    assert write_rows(path, made) == len(made)
    table = read_table(path, Example)
    assert table.rows == made
    assert table.rejects == []


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (json.dumps(prompt("a")).encode()[:-9], "no valid JSON"),
        (b'{"prompt": [{"role": "user", "content": "\xff\xfe"}]}', "not UTF-8 at byte 41"),
        (b'{"prompt": [{"role": "user", "content": "\\ud83d"}], "id": "s"}', "surrogate"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b"[" * 100_000, "nested too deeply"),
        (json.dumps(prompt("a", id="n")).encode()[:-1] + b', "score": NaN}', "NaN is no JSON"),
        (json.dumps({**prompt("a"), "prompt": "2+2"}).encode(), "prompt: Input should be"),
        (
            b'{"prompt": [{"role": "user", "content": 5}], "capability": "math"}',
            "prompt.0.content: Input should be a valid string",
        ),
        (json.dumps(prompt("a", level="three")).encode(), "level: Input should be a valid int"),
        (json.dumps(prompt("a", id=5)).encode(), "id: Input should be a valid string"),
        (b'{"prompt": [{"role": "user", "content": "a"}]}', "capability: Field required"),
        (
            b'{"prompt": [{"role": "bot", "content": "a"}], "capability": "math"}',
            "prompt.0.role: Input should be 'system', 'user'",
        ),
        (json.dumps(prompt(" ")).encode(), "turn 0 (user) is empty"),
        (json.dumps(prompt("a <|eot_id|> b")).encode(), "control token <|eot_id|> inside a"),
    ],
)
def test_a_malformed_row_is_told_with_line_and_reason(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    good = json.dumps(prompt("good")).encode()
    line, told = only_reject(lines(tmp_path / "p.jsonl", good, b"", raw, prompt("better")))
    assert line == 3
    assert reason in told


def test_a_truncated_last_line_costs_one_row(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", prompt("a"), prompt("b"), prompt("c"))
    path.write_bytes(path.read_bytes()[:-20])
    table = read_table(path, Prompt)
    assert [row.prompt[0].content for row in table.rows] == ["a", "b"]
    assert [(r.line, r.reason.partition(":")[0]) for r in table.rejects] == [(3, "no valid JSON")]


def test_a_control_token_hides_in_no_part_of_a_row(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "a"}],
        "ranked": [
            [{"role": "assistant", "content": "b"}],
            [{"role": "assistant", "content": "c<|begin_of_text|>"}],
        ],
        "strength": "better",
    }
    table = read_table(lines(tmp_path / "p.jsonl", row), Preference, CONTROL)
    assert "<|begin_of_text|>" in table.rejects[0].reason
    assert read_table(tmp_path / "p.jsonl", Preference).rejects == []


def test_the_second_of_two_equal_ids_is_a_reject(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "p.jsonl", prompt("a", id="x"), prompt("b", id="y"), prompt("c", id="x")
    )
    assert only_reject(path) == (3, "id x was already used in line 1")


def test_equal_rows_without_ids_are_told_apart_by_content_alone(tmp_path: Path) -> None:
    line, reason = only_reject(lines(tmp_path / "p.jsonl", prompt("a"), prompt("b"), prompt("a")))
    assert line == 3
    assert "already used in line 1" in reason


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\ufeff" + json.dumps(prompt("a")) + "\r\n")
    assert len(load_rows(path, Prompt)) == 1


def test_parquet_holds_the_same_rows_as_jsonl(tmp_path: Path) -> None:
    """A null that Parquet puts where another row has a key is no part of the row."""
    rows = [
        prompt("a", reference={"answer": "3"}, level=2),
        prompt("b", reference={"tests": ["f(1) == 2"]}),
    ]
    plain = lines(tmp_path / "p.jsonl", *rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    from_parquet = load_rows(tmp_path / "p.parquet", Prompt)
    assert from_parquet == load_rows(plain, Prompt)
    assert from_parquet[0].reference == {"answer": "3"}


def test_a_malformed_row_of_parquet_has_its_number(tmp_path: Path) -> None:
    rows = [prompt("a"), prompt(" "), prompt("c")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert only_reject(tmp_path / "p.parquet")[0] == 2


@pytest.mark.parametrize("place", [0.3, 0.99])
def test_a_damaged_parquet_file_is_bad_input(tmp_path: Path, place: float) -> None:
    path = tmp_path / "p.parquet"
    rows = [prompt(f"question {i}") for i in range(200)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * place)])
    with pytest.raises(BadInput, match=r"p\.parquet: no readable Parquet file"):
        read_table(path, Prompt)


def test_too_many_malformed_rows_stop(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", *[prompt(str(i)) for i in range(9)], b"{")
    table = read_table(path, Prompt)
    table.check_share(0.1)
    with pytest.raises(BadInput, match=r"p\.jsonl: 1 of 10 .* allowed 9%.*line 10: no valid JSON"):
        table.check_share(0.09)
    with pytest.raises(BadInput, match="line 10"):
        load_rows(path, Prompt)


def test_an_empty_file_is_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n \n")
    table = read_table(path, Prompt)
    table.check_share(0.0)
    assert (table.rows, table.rejects) == ([], [])


def test_a_missing_file_or_another_format_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.jsonl: no such file"):
        read_table(tmp_path / "gone.jsonl", Prompt)
    (tmp_path / "p.csv").write_text("prompt\n")
    with pytest.raises(BadInput, match=r"expected a \.jsonl or \.parquet file"):
        read_table(tmp_path / "p.csv", Prompt)


def test_a_failing_source_of_rows_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"id": "old"}])
    with pytest.raises(ValueError, match="Out of range"):
        write_rows(path, [{"id": "new"}, {"id": "bad", "score": float("nan")}])
    assert path.read_text() == '{"id": "old"}\n'


WRITER = """
import resource, signal, sys, time
from pathlib import Path
from posttrain.tables import write_json, write_rows

def rows():
    for i in range(10**7):
        yield {"id": str(i), "text": "x" * 1000}
        if i == 200 and sys.argv[2] == "wait":
            print("half", flush=True)
            time.sleep(60)

if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
folder = Path(sys.argv[1])
try:
    write_rows(folder / "rows.jsonl", rows())
except OSError as error:
    print(type(error).__name__)
try:
    write_json(folder / "value.json", {"text": "x" * 10**6})
except OSError as error:
    print(type(error).__name__)
"""


def test_a_full_disk_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: both end a write half-way."""
    write_json(tmp_path / "value.json", {"text": "old"})
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), "full"], capture_output=True, text=True
    )
    assert done.stdout.split() == ["OSError", "OSError"], done.stderr
    assert not (tmp_path / "rows.jsonl").exists()
    assert read_json(tmp_path / "value.json") == {"text": "old"}


def test_a_kill_in_the_middle_leaves_nothing_that_counts(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "wait"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl.tmp"]
    with pytest.raises(BadInput, match="no such file"):
        read_table(tmp_path / "rows.jsonl", Prompt)
    assert write_rows(tmp_path / "rows.jsonl", [prompt("a", id="a")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_reader_sees_the_old_or_the_new_file(tmp_path: Path) -> None:
    """Nobody who reads while another writes ever finds a part of a file."""
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"id": str(i), "turn": 0} for i in range(500)])

    def write() -> None:
        for number in range(1, 30):
            write_rows(path, [{"id": str(i), "turn": number} for i in range(500)])

    with ThreadPoolExecutor(max_workers=1) as pool:
        writer = pool.submit(write)
        while not writer.done():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            assert len(rows) == 500
            assert len({row["turn"] for row in rows}) == 1
        writer.result()


@pytest.mark.parametrize("content", ["", "{", "[1]", "\u00ff"])
def test_json_that_is_no_object_is_bad_input(tmp_path: Path, content: str) -> None:
    path = tmp_path / "value.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(BadInput, match=r"value\.json: "):
        read_json(path)


def test_a_giant_row_is_refused_by_its_size_and_those_after_it_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LARGEST_ROW", 1 << 20)
    path = tmp_path / "rows.jsonl"
    small = {
        "messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    }
    giant = {
        "messages": [*small["messages"][:1], {"role": "assistant", "content": "x" * (5 << 20)}]
    }
    rows = [
        {"id": name, "capability": "math", **one}
        for name, one in zip("abc", (small, giant, small), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_table(path, Example)
    assert [row.id for row in table.rows] == ["a", "c"]
    (reject,) = table.rejects
    assert (reject.line, reject.reason) == (2, "a row of more than 1 MiB")
    assert len(reject.excerpt) <= 300
    offsets = [offset for offset, _, _ in tables.json_file_lines(path)]
    with path.open("rb") as file:
        file.seek(offsets[2])
        assert json.loads(file.readline())["id"] == "c"
