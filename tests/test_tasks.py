"""Which prompts become tasks, which models meet, what simulated people and a judge make of them.

pytest tests/test_tasks.py
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.rows import Prompt, Task
from posttrain.settings.annotation import Tasks
from posttrain.settings.plan import Sampling, Splits
from posttrain.settings.resources import Resources
from posttrain.settings.stages import TasksStage
from posttrain.stages.tasks import _in_order, _pair, _wanted
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows, write_rows
from posttrain.workspace import Workspace
from tests.small_round import PLAN, at, manifest, new_workspace, pair, published, write_lines

JUDGED = """
annotator: {type: simulated, rules: rounds/tiny/people.py, people: 2, judge: {labels: none}}
judge: {type: simulated, rules: rounds/tiny/people.py}
tasks: {twice: 0.5, gold: {path: data/gold.jsonl, share: 0.2}}
"""


def prompts(**num: int) -> list[Prompt]:
    """So many of each capability, on levels 1 and 2 in turn."""
    return [
        Prompt.model_validate(
            {
                "id": f"{name}{n}",
                "prompt": [{"role": "user", "content": f"{name} {n}"}],
                "capability": name,
                "level": 1 + n % 2,
            }
        )
        for name, count in num.items()
        for n in range(count)
    ]


def stage(**tasks: Any) -> TasksStage:
    return TasksStage(
        round=1,
        seed=0,
        sources=(),
        splits=Splits(),
        tasks=Tasks.model_validate(tasks),
        sampling=Sampling(),
        max_context=None,
        recipes={},
    )


def reading(folder: Path, **paths: Path) -> Inputs:
    return Inputs(paths, Workspace(folder), Resources(), folder / "run/machine.json")


def wanted(folder: Path, found: list[Prompt], **tasks: Any) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts that are taken, and the reasons of the others."""
    out = Output(folder, lambda done, total: None)
    kept = _wanted(found, stage(**tasks), out)
    out.part("tasks", len(found), len(kept))
    return kept, out.close()["funnel"][0]["dropped"]


def test_what_the_policy_lags_in_comes_first(tmp_path: Path) -> None:
    passed = {("math", 1): (1, 1), ("math", 2): (0, 1), ("code", 1): (1, 0), ("code", 2): (0, 0)}
    rows = [
        {
            "split": split,
            "mode": mode,
            "capability": name,
            "level": level,
            # Greedy answers and those to test prompts say the contrary, and decide nothing.
            "passed": bool(ok) == (split == "dev" and mode == "sampled"),
        }
        for (name, level), oks in passed.items()
        for ok in oks
        for split, mode in (("dev", "sampled"), ("test", "sampled"), ("dev", "greedy"))
    ]
    write_rows(tmp_path / "measure/responses.jsonl", rows)
    inputs = reading(tmp_path, measure=tmp_path / "measure")
    found = prompts(math=4, code=4, general=1)
    places = [(one.capability, one.level) for one in _in_order(found, inputs, stage())]
    # code 2: nothing passes; math 2, code 1 and what nobody verifies: half; math 1: all.
    assert places[:2] == [("code", 2)] * 2 and places[-2:] == [("math", 1)] * 2
    assert _in_order(found, inputs, stage(order="given")) == found


def test_tasks_have_the_shares_of_the_plan(tmp_path: Path) -> None:
    found = prompts(math=50, code=10, general=40)
    kept, dropped = wanted(tmp_path, found, mix={"math": 0.5, "code": 0.25, "general": 0.25})
    assert Counter(one.capability for one in kept) == {"math": 20, "code": 10, "general": 10}
    assert dropped == {"beyond the share of its capability in tasks.mix": 60}
    # The first of each stay, in their order.
    assert kept == [one for one in found if one in kept] and found[0] in kept
    kept, dropped = wanted(tmp_path, found, mix={"math": 1.0}, num=5)
    assert [one.id for one in kept] == [f"math{n}" for n in range(5)]
    kept, dropped = wanted(tmp_path, found, num=7)
    assert kept == found[:7] and dropped == {"beyond tasks.num": 93}
    assert wanted(tmp_path, found) == (found, {})


def test_models_of_every_named_kind_meet_in_turn(tmp_path: Path) -> None:
    paths = dict.fromkeys(
        ("policy", "previous", "variant:a", "variant:b", "variant:c", "expert:code"), tmp_path
    )
    inputs = reading(tmp_path, **paths)
    every = stage(models=["variants", "previous", "expert"])
    math, code = prompts(math=1, code=1)
    assert [_pair(inputs, every, math, place) for place in range(4)] == [
        ("variant:a", "variant:b"),
        ("variant:b", "variant:c"),
        ("policy", "previous"),
        ("variant:a", "variant:b"),
    ]
    assert _pair(inputs, every, code, 3) == ("policy", "expert:code")
    expert = stage(models=["expert"])
    assert _pair(inputs, expert, code, 0) == ("policy", "expert:code")
    with pytest.raises(Exception, match="math samples from no expert; name another kind too"):
        _pair(inputs, expert, math, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose tasks simulated people and a simulated judge have judged."""
    made = new_workspace(tmp_path_factory.mktemp("tasks") / "ws")
    plan = PLAN.replace("num: 6,", "num: 30,") + JUDGED
    (made / "rounds" / "small.yaml").write_text(plan)
    known = [{**pair(number), "reference": {"answer": f"{number}"}} for number in range(200, 205)]
    write_lines(made / "data" / "gold.jsonl", [*known, {**known[0], "id": "x", "capability": "no"}])
    for words in (["round", "1"], ["round", "2", "--until", "preferences"]):
        ended = at(made, *words)
        assert ended.code == 0, ended.err
    return made


def test_some_tasks_are_judged_twice_and_some_have_a_known_answer(folder: Path) -> None:
    tasks = load_rows(published(folder, "round-1/tasks") / "tasks.jsonl", Task)
    known = [task for task in tasks if task.gold]
    twice = [task for task in tasks if task.times == 2]
    assert len(known) == 5 and {task.gold for task in known} == {"a", "b"}
    for task in known:
        better = task.a if task.gold == "a" else task.b
        assert not better[0].content.startswith("sure!")
    assert 0.2 < len(twice) / (len(tasks) - 5) < 0.8
    # Their ids look alike.
    assert len({len(task.id) for task in tasks}) == 1
    books = manifest(folder, "round-1/tasks")
    assert books["metrics"]["gold"] == 5 and books["metrics"]["judged_twice"] == len(twice)
    gold = next(part for part in books["funnel"] if part["name"] == "gold")
    assert gold["dropped"] == {"unknown capability": 1} and gold["rows_in"] == 6


def test_judgments_of_all_become_preferences_and_nothing_is_lost(folder: Path) -> None:
    tasks = load_rows(published(folder, "round-1/tasks") / "tasks.jsonl", Task)
    books = manifest(folder, "round-2/preferences")
    (part,) = books["funnel"]
    assert part["rows_in"] == part["rows_out"] + sum(part["dropped"].values())
    assert part["rows_in"] == sum(2 if task.gold else task.times or 1 for task in tasks)
    assert part["dropped"]["gold"] == 10
    told = books["metrics"]["annotation"]
    assert set(told["annotators"]) == {"simulated-1", "simulated-2"}
    assert told["agreement"]["tasks"] == sum(task.times == 2 for task in tasks)
    assert told["annotators"]["simulated-1"]["gold"]["num"] == 5
    assert told["judge"]["name"] == "simulated judge" and told["judge"]["all"]["num"] > 0
    rows = (published(folder, "round-2/preferences") / "judgments.jsonl").read_text().splitlines()
    assert "simulated judge" not in {json.loads(line)["annotator"] for line in rows}
    label = manifest(folder, "round-1/label")
    assert label["rows"]["judgments"] + label["metrics"]["unscored"] == len(tasks)


def test_a_judge_alone_can_be_the_annotator(folder: Path) -> None:
    words = ["--set", "annotator={type: judge}", "--redo-stale", "--until", "preferences"]
    ended = at(folder, "round", "2", *words)
    assert ended.code == 0, ended.err
    books = manifest(folder, "round-2/preferences")
    told = books["metrics"]["annotation"]
    assert told["annotators"] == {} and told["judge"]["labelled"] > 0
    (part,) = books["funnel"]
    assert part["rows_in"] == part["rows_out"] + sum(part["dropped"].values())


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("judge={type: none}", "a judge is to judge the tasks, but `judge` names none"),
        ("annotator.people=1", "two people are needed, annotator.people is 1"),
        ("tasks.mix={code: 1.0}", "tasks.mix: code is not in mix"),
        ("tasks.mix={math: 0.4}", "shares sum to 0.4000"),
        ("tasks.models=[expert]", "'expert' needs a recipe whose policy is an expert"),
        ("tasks.gold.path=data/none.jsonl", "not found"),
        ("tasks.twice=2", "less than or equal to 1"),
    ],
)
def test_what_nobody_could_judge_is_told_at_once(folder: Path, override: str, reason: str) -> None:
    ended = at(folder, "plan", "1", "--set", override)
    assert ended.code == 2 and reason in ended.one_line()
