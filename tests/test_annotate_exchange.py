"""A collection as files for others' tools, judgments brought back, and others' preference files.

pytest tests/test_annotate_exchange.py
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.annotate.answers import Answer
from posttrain.annotate.collection import Collection
from posttrain.annotate.exchange import Kind, export_collection, import_judgments
from posttrain.annotate.label_studio import first_side, judgments_of, project_tasks
from posttrain.annotate.store import Store
from posttrain.errors import BadInput
from posttrain.preference_files import Format, convert_file
from posttrain.preference_formats import of_helpsteer, of_trl
from posttrain.preference_rows import JudgedRow
from posttrain.rows import Judgment, Strength, Task
from posttrain.tables import read_table
from tests import made_tasks
from tests.made_tasks import said
from tests.small_round import posttrain, write_lines

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def task(number: int, **fields: Any) -> Task:
    own = {
        "id": f"round-1/q{number}",
        "prompt": [said("be brief", "system"), said(f"question {number}?", "user")],
        "a": [said(f"a{number} – مرحبا")],
        "b": [said(f"b{number}\n```\ncode\n```")],
        "model_a": "round-1/dpo-secret",
        "model_b": "round-1/dpo-hidden",
    }
    return made_tasks.task(number, **{**own, **fields})


TASKS = [
    *(task(number) for number in range(8)),
    task(8, times=2),
    task(9, gold="a"),
    task(10, a=[{**said(""), "tool_calls": [CALL]}, said("3", "tool"), said("it is 3")]),
]


def collection(folder: Path, tasks: list[Task] = TASKS) -> Collection:
    store = Store(folder / "round-1.sqlite")
    store.publish(tasks, gold_share=0.5)
    return Collection("t", 1, store, folder / "round-1.jsonl", tasks, 1.0)


def judge(one: Collection, name: str, num: int) -> None:
    """All kinds of judgments in turn."""
    answers = (
        Answer("first", Strength.BETTER, "edited – עברית\n\nwith lines"),
        Answer("second", Strength.MARGINALLY, reason="why"),
        Answer("tie"),
        Answer("skip", reason="unsure"),
        Answer("second", Strength.SIGNIFICANTLY, "x"),
    )
    one.store.add_annotator(name)
    for number in range(num):
        offered = one.store.next_task(name)
        assert offered is not None
        one.store.submit(name, offered.task.id, answers[number % len(answers)])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_round_trip_keeps_ids_order_annotator_and_time(tmp_path: Path, kind: Kind) -> None:
    source = collection(tmp_path / "source")
    judge(source, "ana", 8)
    judge(source, "ben", 4)
    made = export_collection(source, kind, tmp_path / f"tasks.{kind}")
    assert made.num_tasks == len(TASKS)
    text = made.files[0].read_bytes()
    # Nobody can tell a model, or which answer is known.
    assert b"secret" not in text and b"hidden" not in text and b"gold" not in text
    target = collection(tmp_path / "target")
    done = import_judgments(target, made.files[0], kind, {}, 0.0)
    assert done == (12, [])
    expected = {one.id: one for one in source.store.judgments()}
    assert {one.id: one for one in target.store.judgments()} == expected
    assert import_judgments(target, made.files[0], kind, {}, 0.0) == (0, [])


def test_what_others_wrote_wrongly_is_refused_with_its_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | bytes] = [
        {
            "id": "round-1/q1",
            "judgments": [{"annotator": "x", "choice": "first", "strength": "better"}],
        },
        {"id": "round-9/q1", "judgments": []},
        {"id": "round-1/q2", "judgments": [{"annotator": "x", "choice": "first"}]},
        {
            "id": "round-1/q3",
            "judgments": [
                {"annotator": "x", "choice": "left"},
                {"annotator": "y", "choice": "tie"},
            ],
        },
        {"id": "round-1/q4", "judgments": [{"annotator": "nobody", "choice": "tie"}]},
        b"{",
        b'{"id": "round-1/q5", '
        b'"judgments": [{"annotator": "x", "choice": "tie", "seconds": 1e999}]}',
    ]
    write_lines(tmp_path / "in.jsonl", rows)
    target = collection(tmp_path)
    with pytest.raises(BadInput, match=r"5 of 8 rows are malformed.*resources.reject_share"):
        import_judgments(target, tmp_path / "in.jsonl", "jsonl", {}, 0.1)
    assert target.store.judgments() == []
    done = import_judgments(target, tmp_path / "in.jsonl", "jsonl", {}, 1.0)
    # One that states nothing costs no other of its task.
    assert done.taken == 2 and len(done.rejects) == 6
    assert {one.line for one in done.rejects} == {2, 3, 4, 5, 6, 7}
    reasons = " | ".join(one.reason for one in done.rejects)
    for part in (
        "no task round-9/q1",
        "strength belongs",
        "choice",
        "nobody",
        "no valid JSON",
        "finite",
    ):
        assert part in reasons


def annotation(**changes: Any) -> dict[str, Any]:
    """As Label Studio 1.23.2 exports what somebody did in its page."""
    result = [
        {"value": {"selected": "right"}, "id": "L_87", "from_name": "better", "to_name": "better",
         "type": "pairwise", "origin": "manual"},
        {"value": {"choices": ["slightly better"]}, "id": "uia", "from_name": "strength",
         "to_name": "dialog", "type": "choices", "origin": "manual"},
        {"value": {"text": ["better\nwith a line"]}, "id": "45k", "from_name": "edited",
         "to_name": "dialog", "type": "textarea", "origin": "manual"},
    ]  # fmt: skip
    return {
        "id": 1,
        "completed_by": 1,
        "result": result,
        "was_cancelled": False,
        "created_at": "2026-11-22T08:16:59.102907Z",
        "lead_time": 5.347,
        **changes,
    }


TIE = {"from_name": "strength", "value": {"choices": ["tie"]}}


def exported(**changes: Any) -> list[dict[str, Any]]:
    return [{**project_tasks(TASKS)[3], "id": 7, "annotations": [annotation(**changes)]}]


def test_an_annotation_of_label_studio_becomes_a_judgment() -> None:
    ((_, made),), rejects = judgments_of(exported(), TASKS, {1: "ana"}, "export.json")
    assert not rejects
    order = first_side(TASKS[3])
    assert made.choice == ("b" if order == "a" else "a") and made.first == order
    assert (made.id, made.annotator, made.seconds) == ("round-1/q3/ana", "ana", 5.347)
    assert made.at == "2026-11-22T08:16:59.102907+00:00" and made.strength == Strength.SLIGHTLY
    assert made.edited is not None and made.edited[0].content == "better\nwith a line"
    ((_, stranger),), _ = judgments_of(exported(completed_by={"id": 5}), TASKS, {1: "ana"}, "e")
    assert stranger.annotator == "label-studio-5"
    ((_, skip),), _ = judgments_of(exported(was_cancelled=True, result=[]), TASKS, {}, "e")
    assert skip.choice == "skip"
    ((_, even),), _ = judgments_of(exported(result=[TIE]), TASKS, {}, "e")
    assert even.choice == "tie"
    sides = {first_side(one) for one in TASKS}
    assert sides == {"a", "b"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"result": []}, "neither a response with its strength, nor a tie"),
        ({"result": annotation()["result"][:1]}, "neither a response"),
        ({"result": [annotation()["result"][0], TIE]}, "a tie, though a response was chosen"),
        ({"result": [{"from_name": "strength", "value": {}}]}, "choices"),
        ({"lead_time": -1}, "greater than or equal to 0"),
        ({"completed_by": None}, "completed_by is None"),
        ({"lead_time": float("inf")}, "finite"),
        ({"created_at": "\ud83d"}, "surrogate"),
    ],
)  # fmt: skip
def test_an_annotation_that_states_nothing_is_refused(changes: dict[str, Any], reason: str) -> None:
    made, (reject,) = judgments_of(exported(**changes), TASKS, {}, "export.json")
    assert made == [] and reason in reject.reason and reject.line == 1


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"id": 1, "task": "x"}]', "no json"])
def test_another_file_is_no_export_of_label_studio(tmp_path: Path, content: str) -> None:
    file = tmp_path / "export.json"
    file.write_text(content)
    with pytest.raises(BadInput, match=r"export `JSON`|cannot be read as JSON"):
        import_judgments(collection(tmp_path), file, "label-studio", {}, 0.0)


def test_label_studio_gets_what_is_still_to_judge(tmp_path: Path) -> None:
    source = collection(tmp_path)
    judge(source, "ana", 6)
    made = export_collection(source, "label-studio", tmp_path / "ls")
    judged = {one.task for one in source.store.judgments()} - {"round-1/q8"}
    rows = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    # Those with a known answer go as the others do, and stand at no place of their own.
    assert not judged & {row["data"]["task"] for row in rows}
    assert made.num_tasks == len(rows) == len(TASKS) - made.num_left_out
    assert "secret" not in str(rows) and "gold" not in str(rows)
    assert "<Pairwise" in (tmp_path / "ls" / "interface.xml").read_text()
    few = collection(tmp_path / "few", TASKS[:1])
    judge(few, "ana", 1)
    with pytest.raises(BadInput, match="nothing to export"):
        export_collection(few, "label-studio", tmp_path / "none")
    with pytest.raises(BadInput, match=r"expected a .parquet file"):
        export_collection(source, "parquet", tmp_path / "x.jsonl")


# ---------------------------------------------------------------- others' preferences


@pytest.mark.parametrize(
    ("value", "best", "strength"),
    [
        (-3, "one", "significantly better"),
        (-2, "one", "better"),
        (-1, "one", "slightly better"),
        (1, "two", "slightly better"),
        (2, "two", "better"),
        (3.0, "two", "significantly better"),
    ],
)
def test_helpsteers_scale_has_a_stated_meaning(value: float, best: str, strength: str) -> None:
    three = {
        "domain": "code",
        "language": "python",
        "context": [said("hi", "user"), said("hello"), said("code?", "user")],
        "response1": "one",
        "response2": "two",
        "overall_preference": value,
    }
    (row,) = JudgedRow.model_validate(of_helpsteer(three, "general")).preferences
    assert row.chosen is not None and row.chosen[0].content == best
    assert (row.strength, row.capability, len(row.prompt)) == (strength, "code", 3)
    two = {
        "prompt": "hi\n<extra_id_1>Assistant\nhello\n<extra_id_1>User\nand now?",
        "response_1": "one",
        "response_2": "two",
        "preference_strength": value,
    }
    (row,) = JudgedRow.model_validate(of_helpsteer(two, "general")).preferences
    assert row.chosen is not None and row.chosen[0].content == best
    assert [turn.content for turn in row.prompt] == ["hi", "hello", "and now?"]
    assert (row.strength, row.capability) == (strength, "general")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": [said("2+2?", "user")], "chosen": [said("4")], "rejected": [said("5")]},
        {
            "chosen": [said("2+2?", "user"), said("4")],
            "rejected": [said("2+2?", "user"), said("5")],
        },
    ],
)
def test_trls_formats_are_read(row: dict[str, Any]) -> None:
    (found,) = JudgedRow.model_validate(of_trl(row, "math", Strength.BETTER)).preferences
    assert [turn.content for turn in found.prompt] == ["2+2?"]
    assert [side[0].content for side in found.ranking()] == ["4", "5"]
    assert (found.capability, found.strength) == ("math", Strength.BETTER)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20)


@given(turns=st.lists(WORDS.filter(str.strip), min_size=1, max_size=5), a=WORDS, b=WORDS)
def test_an_implicit_prompt_is_what_both_dialogs_share(turns: list[str], a: str, b: str) -> None:
    if not a.strip() or not b.strip() or a == b:
        return
    turns = turns if len(turns) % 2 else turns[:-1] or ["q"]
    prompt = [said(text, ("user", "assistant")[place % 2]) for place, text in enumerate(turns)]
    if len(prompt) % 2 == 0:
        prompt = prompt[:-1]
    row = of_trl(
        {"chosen": [*prompt, said(a)], "rejected": [*prompt, said(b)]}, "x", Strength.BETTER
    )
    assert row["prompt"] == prompt and row["chosen"] == [said(a)] and row["rejected"] == [said(b)]


@pytest.mark.parametrize("kind", ["trl", "helpsteer"])
def test_a_file_becomes_a_preference_file_and_its_rejects(tmp_path: Path, kind: Format) -> None:
    good: list[dict[str, Any]]
    if kind == "trl":
        good = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(3)]
        bad = [
            {"prompt": "x", "chosen": "same", "rejected": "same"},
            {"chosen": "a", "rejected": "b"},
            good[0],
        ]
    else:
        base = {"response1": "one", "response2": "two"}
        good = [
            {**base, "context": [said(f"{n}?", "user")], "overall_preference": 2} for n in range(3)
        ]
        bad = [{**good[0], "overall_preference": 0}, {**good[0], "overall_preference": 4}, {**base}]
    write_lines(tmp_path / "in.jsonl", [*good, *bad])
    out = tmp_path / "out.jsonl"
    told = convert_file(tmp_path / "in.jsonl", kind, out, "general", Strength.BETTER)
    assert told.startswith("3 preferences (3 better)") and "3 rows left out" in told
    table = read_table(out, JudgedRow)
    assert len(table.rows) == 3 and not table.rejects
    rejects = (tmp_path / "out.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejects] == [4, 5, 6]
    pa.parquet.write_table(pa.Table.from_pylist(good), tmp_path / "in.parquet")
    convert_file(tmp_path / "in.parquet", kind, tmp_path / "b.jsonl", "general", Strength.BETTER)
    assert read_table(tmp_path / "b.jsonl", JudgedRow).rows == table.rows


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--from", "csv"], "--from csv: expected label-studio, jsonl, parquet, trl, helpsteer"),
        (["--from", "trl"], "name the file to write with --out"),
        (["--from", "trl", "--out", "x.jsonl", "--strength", "much"], "--strength much: expected"),
        (["--from", "jsonl"], "say whose tasks were judged with --round"),
        (["--from", "trl", "--out", "rows.jsonl"], "would overwrite"),
        (["--from", "trl", "--out", "x.jsonl"], "none of 1 rows states a preference"),
    ],
)
def test_what_cannot_be_imported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "rows.jsonl", [{"chosen": 1}])
    ended = posttrain("annotate", "import", "rows.jsonl", *words)
    assert ended.code == 2 and reason in ended.one_line()


def test_judgments_state_their_place_on_the_scale() -> None:
    base = {"task": "t", "annotator": "x"}
    scale = [
        Judgment.model_validate({**base, "choice": side, "strength": strength}).scale
        for side in "ab"
        for strength in Strength
    ]
    assert scale == [-1, -2, -3, -4, 1, 2, 3, 4]
    assert (
        Judgment(**base, choice="tie").scale == 0 and Judgment(**base, choice="skip").scale is None
    )
