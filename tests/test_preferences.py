"""From rows of preference files and judgments to checked preferences of one turn each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.planning.rounds import plan_steps
from posttrain.preference_rows import JudgedRow, strong_preferences
from posttrain.rows import Preference, Strength, split_of
from posttrain.settings.annotation import FileAnnotator
from posttrain.settings.pipeline import Decontaminate
from posttrain.settings.plan import Similarity, Splits
from posttrain.settings.recipe import RecipeSettings
from posttrain.settings.resources import Resources
from posttrain.settings.stages import PreferencesStage
from posttrain.stages import preferences
from posttrain.steps.output import Inputs, Output
from posttrain.tables import complaint, read_table, write_rows
from posttrain.workspace import Workspace, load_plan

ROOT = Path(__file__).parent.parent
BASE = ROOT / "rounds" / "tiny" / "base"
Step = Callable[..., tuple[Output, dict[str, Any]]]


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def pair(row_id: str, question: str, **more: Any) -> dict[str, Any]:
    row = {"id": row_id, "prompt": asked(question), "strength": "better", "capability": "math"}
    return {**row, "chosen": said("four"), "rejected": said("it is five"), **more}


def dialog(row_id: str, question: str, num_turns: int = 3) -> dict[str, Any]:
    """A dialog of judged turns; its row has the opening as its prompt."""
    turns = [
        {
            "prompt": asked(f"and then {n}?") if n else [],
            "chosen": said(f"chosen {n}"),
            "rejected": said(f"no such thing as {n}"),
            "strength": list(Strength)[n % 4],
        }
        for n in range(num_turns)
    ]
    return {"id": row_id, "prompt": asked(question), "turns": turns, "capability": "math"}


def refusal(row: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        JudgedRow.model_validate(row)
    return complaint(caught.value)


@pytest.fixture
def step(tmp_path: Path) -> Step:
    """The step on rows of a file, or on judgments of tasks; its output and its books."""

    def run(
        rows: list[dict[str, Any]], tasks: list[dict[str, Any]] | None = None, **changes: Any
    ) -> tuple[Output, dict[str, Any]]:
        for split in ("dev", "test"):
            write_rows(tmp_path / f"heldout/{split}.jsonl", [])
        paths = {"base": BASE, "heldout": tmp_path / "heldout"}
        name = "preferences:000" if tasks is None else "answers"
        paths[name] = tmp_path / "rows.jsonl"
        write_rows(paths[name], rows)
        if tasks is not None:
            paths["tasks"] = tmp_path / "tasks"
            write_rows(tmp_path / "tasks/tasks.jsonl", tasks)
        settings = {
            "round": 1,
            "seed": 0,
            "annotator": FileAnnotator(),
            "splits": Splits(dev=0.3, test=0.3),
            "similarity": Similarity(),
            "embedder": None,
            "decontaminate": Decontaminate(),
            "recipes": {"math": RecipeSettings(name="math")},
        }
        (tmp_path / "out").mkdir()
        out = Output(tmp_path / "out", lambda done, total: None)
        inputs = Inputs(
            paths, Workspace(tmp_path), Resources(reject_share=1), tmp_path / "run/machine.json"
        )
        preferences.run(inputs, PreferencesStage.model_validate({**settings, **changes}), out)
        return out, out.close()

    return run


def table(out: Output, name: str) -> list[dict[str, Any]]:
    path = out.path / f"{name}.jsonl"
    return [json.loads(line) for line in path.open()] if path.is_file() else []


# ---------------------------------------------------------------- turns


def test_a_judged_dialog_becomes_a_preference_a_turn() -> None:
    row = JudgedRow.model_validate(dialog("d", "2+2?"))
    assert [one.id for one in row.preferences] == ["d/turn-1", "d/turn-2", "d/turn-3"]
    assert {one.parents for one in row.preferences} == {("d",)}
    assert [one.strength.level for one in row.preferences] == [0, 1, 2]
    last = row.preferences[-1]
    assert [turn.content for turn in last.prompt] == [
        "2+2?",
        "chosen 0",
        "and then 1?",
        "chosen 1",
        "and then 2?",
    ]
    assert [response[-1].content for response in last.ranking()] == [
        "chosen 2",
        "no such thing as 2",
    ]
    assert last.capability == "math"


def test_a_dialog_goes_on_from_the_best_and_over_turns_that_nobody_judged() -> None:
    row = dialog("d", "2+2?")
    row["turns"][0]["edited"] = said("better than chosen")
    row["turns"][1] = {"prompt": asked("hm?"), "chosen": said("not judged")}
    row["turns"][2] |= {"ranked": [said("x"), said("y"), said("z")]}
    del row["turns"][2]["chosen"], row["turns"][2]["rejected"]
    row["turns"].append({**dialog("", "")["turns"][1], "prompt": asked("last?")})
    first, ranked, last = JudgedRow.model_validate(row).preferences
    assert first.ranking()[0][-1].content == "better than chosen"
    assert (ranked.id, last.id) == ("d/turn-3", "d/turn-4")
    assert [turn.content for turn in last.prompt[-6:]] == [
        "chosen 0",
        "hm?",
        "not judged",
        "and then 2?",
        "x",
        "last?",
    ]


def test_the_documented_dialog_is_one() -> None:
    blocks = (ROOT / "docs" / "rows.md").read_text().split("```json\n")[1:]
    (text,) = (block for one in blocks if '"turns"' in (block := one.partition("```")[0]))
    row = JudgedRow.model_validate(json.loads(text))
    assert [one.id for one in row.preferences] == ["d7/turn-1", "d7/turn-2"]
    assert [len(one.prompt) for one in row.preferences] == [1, 3]


def test_a_dialog_without_an_id_gets_one_from_its_content() -> None:
    row = dialog("", "2+2?")
    one, again = JudgedRow.model_validate(row), JudgedRow.model_validate(row)
    assert one.id == again.id == one.preferences[0].parents[0]
    assert JudgedRow.model_validate(dialog("", "2+3?")).id != one.id


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"turns": []}, "turns: Tuple should have at least 1 item"),
        ({"turns": ["hello"]}, "turns.0: Input should be a valid dictionary"),
        ({"turns": [{"chosen": said("4")}]}, "turns: none of them was judged"),
        ({"turns": [{"rejected": said("4"), "strength": "better"}]}, "d/turn-1: give either"),
    ],
)
def test_a_dialog_that_cannot_be_split_says_why(change: dict[str, Any], line: str) -> None:
    assert line in refusal({**dialog("d", "2+2?"), **change})


def test_a_turn_that_ranks_nothing_is_named() -> None:
    row = dialog("d", "2+2?")
    row["turns"][1]["edited"] = row["turns"][1]["rejected"]
    assert refusal(row) == "d/turn-2: edited equals rejected"
    row = dialog("d", "2+2?")
    row["turns"][2]["prompt"] = []
    assert refusal(row) == "d/turn-3: turn 4 is assistant, expected user"


def test_a_prompt_with_earlier_answers_stays_one_row() -> None:
    prompt = [*asked("2+2?"), *said("4"), *asked("plus 1?")]
    (row,) = JudgedRow.model_validate(pair("p", "", prompt=prompt)).preferences
    assert (row.id, len(row.prompt), len(row.ranking()[0])) == ("p", 3, 1)


def test_turns_that_responses_share_move_into_the_prompt() -> None:
    shared = [*said("4"), *asked("plus 1?")]
    sides = {
        "chosen": [*shared, *said("5")],
        "rejected": [*shared, *said("6")],
        "edited": [*shared, *said("it is 5")],
    }
    (row,) = JudgedRow.model_validate(pair("p", "2+2?", **sides)).preferences
    assert [turn.content for turn in row.prompt] == ["2+2?", "4", "plus 1?"]
    assert [[turn.content for turn in one] for one in row.ranking()] == [["it is 5"], ["5"], ["6"]]
    ranked = {"ranked": list(sides.values()), "chosen": None, "rejected": None}
    (row,) = JudgedRow.model_validate(pair("p", "2+2?", **ranked)).preferences
    assert [[turn.content for turn in one] for one in row.ranking()] == [["5"], ["6"], ["it is 5"]]
    parted = {**sides, "rejected": [*said("7"), *asked("plus 1?"), *said("6")]}
    assert "differ before their last user turn" in refusal(pair("p", "2+2?", **parted))


def test_tool_calls_and_their_results_are_one_turn() -> None:
    def trajectory(argument: int, answer: str) -> list[dict[str, Any]]:
        call = {"name": "add", "arguments": {"a": argument}}
        said_nothing = {"role": "assistant", "content": "", "tool_calls": [call]}
        return [said_nothing, {"role": "tool", "content": str(argument)}, *said(answer)]

    sides = {"chosen": trajectory(1, "one"), "rejected": trajectory(1, "two")}
    (row,) = JudgedRow.model_validate(pair("p", "1?", **sides)).preferences
    assert [len(response) for response in row.ranking()] == [3, 3]
    assert len(row.prompt) == 1


# ---------------------------------------------------------------- edits


@pytest.mark.parametrize(
    ("edited", "line"),
    [
        (said(" it is five\n"), "edited equals rejected"),
        (said("it is five"), "edited equals rejected"),
        (said(" "), "edited is empty"),
        ([], "edited is empty"),
        ("four!", "edited: Input should be a valid tuple"),
        ([{"role": "assistant"}], "edited is empty"),
    ],
)
def test_an_edit_that_ranks_nothing_is_refused(edited: Any, line: str) -> None:
    assert refusal(pair("p", "2+2?", edited=edited)) == line


def test_an_edit_that_changes_nothing_is_left_out_and_counted(step: Step) -> None:
    rows = [
        pair("a", "1+3?", edited=said("four ")),
        pair("b", "2+2?", edited=said("4")),
        pair("c", "3+1?", edited=None),
        pair("d", "0+4?", edited=said("it is five")),
    ]
    out, books = step(rows)
    kept = {row["id"]: row.get("edited") for s in ("train", "dev", "test") for row in table(out, s)}
    assert kept == {"a": None, "b": said("4"), "c": None}
    assert books["funnel"] == [
        {
            "name": "preferences",
            "rows_in": 4,
            "rows_out": 3,
            "dropped": {"malformed": 1},
            "changed": {"edited equals chosen": 1},
        }
    ]
    assert table(out, "dropped")[0]["reason"] == "malformed: edited equals rejected"


def test_judgments_go_through_the_same_checks(step: Step) -> None:
    tasks = [
        {
            "id": f"t{n}",
            "prompt": asked(f"{n}+4?"),
            "a": said("four"),
            "b": said("it is five"),
            "model_a": "x",
            "model_b": "y",
            "capability": "math",
            "batch": "round-1",
        }
        for n in range(5)
    ]
    edits = [said("4"), said("four\n"), said("it is five "), said(" "), None]
    answers = [
        {"id": f"j{n}", "task": f"t{n}", "choice": "a", "strength": "better", "annotator": "x"}
        | ({"edited": edit} if edit else {})
        for n, edit in enumerate(edits)
    ]
    out, books = step(answers, tasks)
    part = books["funnel"][0]
    assert (part["rows_in"], part["rows_out"]) == (5, 3)
    assert part["changed"] == {"edited equals chosen": 1}
    assert part["dropped"] == {"no ranking": 2}
    assert {row["id"]: row["reason"] for row in table(out, "dropped")} == {
        "j2": "no ranking: edited equals rejected",
        "j3": "no ranking: edited is empty",
    }


# ---------------------------------------------------------------- similarity

LONG = "the number that is asked for here must surely be " + " and ".join("abcdefghijkl")


def test_rows_of_nearly_alike_responses_go_with_measure_and_value(step: Step) -> None:
    near = {"chosen": said(f"{LONG} 1"), "rejected": said(f"{LONG} 2")}
    rows = [
        pair("pair", "1?", **near),
        pair("far", "3?"),
        pair("ends", "4?", chosen=None, rejected=None)
        | {"ranked": [said(LONG), said("other"), said(f"{LONG}!")]},
        pair("both", "5?", **near, edited=said("none")),
    ]
    out, books = step(rows)
    assert books["funnel"][0]["dropped"] == {"responses too similar": 2}
    assert books["funnel"][0]["changed"] == {}
    dropped = {row["id"]: row for row in table(out, "dropped")}
    tokenizer = load_tokenizer(BASE)
    length = len(tokenizer(f"{LONG} 1", add_special_tokens=False)["input_ids"])
    assert set(dropped) == {"pair", "both"}
    assert dropped["pair"]["measure"] == "edit"
    assert dropped["pair"]["value"] == pytest.approx(1 - 1 / length)
    assert dropped["pair"]["ranks"] == [1, 2]
    assert dropped["both"]["ranks"] == [2, 3]
    assert dropped["pair"]["row"]["chosen"] == near["chosen"]


def test_an_edit_takes_the_place_of_a_chosen_response_it_is_nearly_alike_to(step: Step) -> None:
    light = {"chosen": said(LONG), "edited": said(f"{LONG}!")}
    close = [said("first"), said(LONG), said(f"{LONG}!"), said(f"{LONG}?"), said("last")]
    rows = [
        pair("edit", "2?", **light, rejected=said("none")),
        pair("close", "3?", chosen=None, rejected=None) | {"ranked": close},
    ]
    out, books = step(rows)
    assert books["funnel"][0]["changed"] == {"a response too similar to a better one left out": 3}
    kept = {
        row["id"]: Preference.model_validate(row).ranking()
        for split in ("train", "dev", "test")
        for row in table(out, split)
    }
    said_in = {name: [turn.content for (turn,) in ranking] for name, ranking in kept.items()}
    assert said_in == {"edit": [f"{LONG}!", "none"], "close": ["first", LONG, "last"]}


def test_without_a_limit_nothing_is_too_similar(step: Step) -> None:
    near = pair("p", "1?", chosen=said(f"{LONG} 1"), rejected=said(f"{LONG} 2"))
    _, books = step([near], similarity={"max_edit": None})
    assert books["funnel"][0]["rows_out"] == 1


def test_embeddings_find_what_says_the_same_in_other_words(step: Step) -> None:
    rows = [
        pair("same", "1?", chosen=said("The car is red."), rejected=said("The automobile is red.")),
        pair("other", "2?", chosen=said("The car is red."), rejected=said("Bread needs flour.")),
        pair("long", "3?", chosen=said("red " * 400), rejected=said("red " * 300 + "blue " * 200)),
    ]
    similarity = {"max_edit": None, "max_cosine": 0.85}
    out, books = step(rows, similarity=similarity, embedder="minilm")
    (dropped,) = table(out, "dropped")
    assert (dropped["id"], dropped["measure"], dropped["ranks"]) == ("same", "cosine", [1, 2])
    assert 0.85 < dropped["value"] < 1
    # The embedder reads the beginning of a long response only, so it does not judge it.
    assert books["metrics"] == {"rankings_unread_by_embedder": 1}


# ---------------------------------------------------------------- splits


def test_no_dialog_and_no_prompt_spans_splits(step: Step) -> None:
    rows = []
    for n in range(40):
        rows.append(dialog(f"d{n}", f"what is {n}?"))
        steered = [{"role": "system", "content": "Be brief."}, *asked(f" what is  {n}?")]
        ranked = {"ranked": [said("x"), said("yy"), said("zzz")]}
        rows.append(pair(f"r{n}", "", prompt=steered, chosen=None, rejected=None) | ranked)
        later = [*asked(f"what is {n}?"), *said("what?"), *asked(f"I said {n}")]
        rows.append(pair(f"p{n}", "", prompt=later))
    out, books = step(rows)
    assert books["funnel"][0]["rows_out"] == 5 * 40
    found = {split: table(out, split) for split in ("train", "dev", "test")}
    numbers = {
        split: {row["id"].partition("/")[0][1:] for row in rows} for split, rows in found.items()
    }
    assert all(numbers.values())
    assert sum(map(len, numbers.values())) == 40
    for split, rows in found.items():
        assert len(rows) == 5 * len(numbers[split])
        for row in rows:
            prompt = Preference.model_validate(row).prompt
            assert split_of(prompt, 0.3, 0.3) == split


def test_a_control_token_in_a_later_turn_is_refused(tmp_path: Path) -> None:
    row = dialog("d", "2+2?")
    row["turns"][2]["rejected"] = said("5<|eot_id|>")
    write_rows(tmp_path / "rows.jsonl", [row])
    found = read_table(tmp_path / "rows.jsonl", JudgedRow, control_tokens(load_tokenizer(BASE)))
    assert found.rows == []
    assert found.rejects[0].reason == "control token <|eot_id|> inside a message"


def test_dpo_leaves_out_what_a_recipe_says(tmp_path: Path) -> None:
    rows = [
        {**pair(f"p{n}", f"{n}?"), "capability": capability, "batch": "round-1"}
        for n, capability in enumerate(["math", "long_context", "math"])
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    (tmp_path / "out").mkdir()
    out = Output(tmp_path / "out", lambda done, total: None)
    strong = strong_preferences([tmp_path], Strength.BETTER, out, without=["long_context"])
    assert [row.id for row in strong] == ["p0", "p2"]
    out.close()
    (dropped,) = table(out, "dropped")
    assert dropped["reason"] == "left out: its recipe says dpo: false"


def test_the_plan_keeps_long_contexts_out_of_dpo() -> None:
    mix = ["mix={math: 0.9, long_context: 0.1}", "recipes={}"]
    plan = load_plan(Workspace(ROOT), "tiny", mix)
    steps = plan_steps(Workspace(ROOT), "tiny", plan)
    assert steps["round-1/dpo-a"].settings["without"] == ["long_context"]
