"""What people write: judgments that become preferences, and examples that are never held out."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import BadInput
from posttrain.judgments.preferences import preference_of
from posttrain.judgments.simulated import SimulatedPeople, people_from, simulate, task_prompt
from posttrain.rows import (
    Candidate,
    Judgment,
    Message,
    Preference,
    Prompt,
    Strength,
    Task,
    split_of,
)
from posttrain.settings.annotation import SimulatedAnnotator
from posttrain.settings.pipeline import Decontaminate
from posttrain.settings.plan import Splits
from posttrain.settings.resources import Resources
from posttrain.settings.stages import HumanStage
from posttrain.stages.human import run
from posttrain.steps.output import Inputs, Output
from posttrain.tables import write_rows
from posttrain.workspace import Workspace, load_functions

ROUNDS = Path(__file__).parent.parent / "rounds"
PEOPLE = ROUNDS / "tiny" / "people.py"
TEXTS = st.text("ab 12", min_size=1).filter(str.strip)


def said(text: str) -> tuple[Message, ...]:
    return (Message(role="assistant", content=text),)


def task(a: str, b: str, number: int = 0, answer: str = "4") -> Task:
    return Task.model_validate(
        {
            "id": f"t{number}",
            "parents": (f"prompt{number}",),
            "prompt": (Message(role="user", content=f"{number}+4=?"),),
            "a": said(a),
            "b": said(b),
            "model_a": "round-1/dpo-a",
            "model_b": "round-1/dpo-b",
            "capability": "math",
            "batch": "round-2",
            "reference": {"answer": answer},
        }
    )


def judgment(choice: str, **more: Any) -> Judgment:
    strength = "better" if choice in "ab" else None
    return Judgment.model_validate(
        {"task": "t0", "choice": choice, "annotator": "ann", "strength": strength, **more}
    )


def people(**noise: Any) -> SimulatedPeople:
    settings = SimulatedAnnotator(type="simulated", rules="people.py", **noise)
    return people_from(load_functions(PEOPLE), settings)


def contains_answer(pairs: Sequence[tuple[Candidate, Prompt]]) -> list[bool]:
    return [prompt.reference["answer"] in candidate.response for candidate, prompt in pairs]


@pytest.mark.parametrize(("choice", "best"), [("a", "four"), ("b", "five")])
def test_the_chosen_side_is_better(choice: str, best: str) -> None:
    row = preference_of(task("four", "five"), [judgment(choice)])
    assert isinstance(row, Preference)
    assert row.ranking()[0][-1].content == best
    assert row.strength is Strength.BETTER
    assert (row.capability, row.batch) == ("math", "round-2")


def test_a_preference_knows_its_judgment_its_task_and_its_prompt() -> None:
    answer = judgment("a")
    row = preference_of(task("four", "five"), [answer])
    assert isinstance(row, Preference)
    assert row.parents == (answer.id, "t0", "prompt0")


@pytest.mark.parametrize("choice", ["tie", "skip"])
def test_ties_and_skips_are_never_preferences(choice: str) -> None:
    none = preference_of(task("four", "five"), [judgment(choice)])
    assert none == f"{choice}: a judgment, no preference"


def test_an_edit_ranks_first_and_an_edit_that_changes_nothing_is_none() -> None:
    row = preference_of(task("four", "five"), [judgment("a", edited=said("4"))])
    assert isinstance(row, Preference)
    assert [side[-1].content for side in row.ranking()] == ["4", "four", "five"]
    same = preference_of(task("four", "five"), [judgment("a", edited=said("four"))])
    assert isinstance(same, Preference)
    assert same.edited is None


def test_an_answer_that_ranks_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="edited equals rejected"):
        preference_of(task("four", "five"), [judgment("a", edited=said("five"))])
    with pytest.raises(ValueError, match="equal"):
        preference_of(task("four", "four"), [judgment("a")])


def test_people_without_noise_prefer_what_they_see_is_right_then_what_is_plain() -> None:
    tasks = [
        task("sure! 4", "five", 1),
        task("5", "4", 2),
        task("sure! 4", "4", 3),
        task("4", "4", 4),
        task("4", " 4" * 10, 5),
    ]
    answers = simulate(tasks, people(flip=0.0, edit=1.0), contains_answer, seed=0)
    assert [answer.choice for answer in answers] == ["a", "b", "b", "tie", "a"]
    assert [answer.strength for answer in answers] == [
        Strength.BETTER,
        Strength.BETTER,
        Strength.BETTER,
        None,
        Strength.SLIGHTLY,
    ]
    assert answers[0].edited == said("4")
    assert [answer.edited for answer in answers[1:]] == [None] * 4
    flipped = simulate(tasks, people(flip=1.0, edit=1.0), contains_answer, seed=0)
    assert [answer.choice for answer in flipped] == ["b", "a", "a", "tie", "b"]


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=12), st.integers(0, 99), st.randoms())
def test_an_answer_depends_on_its_task_and_the_seed_alone(
    texts: list[tuple[str, str]], seed: int, shuffle: random.Random
) -> None:
    tasks = [task(a, b, number) for number, (a, b) in enumerate(texts)]
    known = {a.task: a for a in simulate(tasks, people(flip=0.5), contains_answer, seed)}
    shuffle.shuffle(tasks)
    some = tasks[: len(tasks) // 2]
    for answer in simulate(some, people(flip=0.5), contains_answer, seed):
        assert answer == known[answer.task]


@given(TEXTS, TEXTS, st.sampled_from(["a", "b"]), st.none() | TEXTS)
def test_every_judgment_is_a_valid_ranking_or_refused(
    a: str, b: str, choice: str, edited: str | None
) -> None:
    answer = judgment(choice, edited=said(edited) if edited else None)
    texts = {"a": a, "b": b}
    worse = texts["b" if choice == "a" else "a"]
    if a == b or (edited is not None and edited.strip() == worse.strip()):
        with pytest.raises(ValueError, match=r"equal"):
            preference_of(task(a, b), [answer])
        return
    row = preference_of(task(a, b), [answer])
    assert row is not None
    ranked = [side[-1].content for side in row.ranking()]
    assert ranked[-2:] == [texts[choice], worse]
    assert len(set(ranked)) == len(ranked)


def test_noise_has_the_shares_that_were_asked_for() -> None:
    tasks = [task("sure! 4", "five", number) for number in range(2000)]
    answers = simulate(tasks, people(flip=0.1, edit=0.3), contains_answer, seed=1)
    flipped = sum(answer.choice == "b" for answer in answers) / 2000
    edited = sum(answer.edited is not None for answer in answers) / 2000
    assert abs(flipped - 0.1) < 5 * (0.1 * 0.9 / 2000) ** 0.5
    assert abs(edited - 0.27) < 5 * (0.27 * 0.73 / 2000) ** 0.5


def test_noise_may_depend_on_the_strength() -> None:
    pairs = {"glaring": ("4", "five"), "close": ("4", "5")}
    strengths = {
        name: simulate([task(*texts)], people(flip=0.0), contains_answer, seed=1)[0].strength
        for name, texts in pairs.items()
    }
    assert strengths["glaring"] != strengths["close"]
    noisy = people(flip={str(strengths["close"]): 0.25})
    for name, texts in pairs.items():
        tasks = [task(*texts, number) for number in range(2000)]
        answers = simulate(tasks, noisy, contains_answer, seed=1)
        flipped = sum(answer.choice == "b" for answer in answers) / 2000
        wanted = 0.25 if name == "close" else 0.0
        assert abs(flipped - wanted) <= 5 * (wanted * (1 - wanted) / 2000) ** 0.5


def test_rules_without_the_functions_are_named(tmp_path: Path) -> None:
    noise = SimulatedAnnotator(type="simulated", rules="people.py")
    with pytest.raises(BadInput, match=r"people\.py: simulated people need a function edit\(\)"):
        people_from({"utility": lambda prompt, text, passed: 0.0}, noise)


def test_a_task_carries_what_a_verifier_needs() -> None:
    prompt = task_prompt(task("4", "5", 7))
    assert prompt.id == "prompt7"
    assert prompt.reference == {"answer": "4"}


# ---------------------------------------------------------------- human-written examples


def dialog(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [("user", question), ("assistant", answer)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "capability": "math", **more}


SPLITS = Splits(dev=0.3, test=0.3)


def question_of(split: str) -> str:
    """A sum whose hash belongs to a split."""
    texts = (f"{n}+{n}=?" for n in range(100))
    return next(
        text
        for text in texts
        if split_of((Message(role="user", content=text),), SPLITS.dev, SPLITS.test) == split
    )


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """A step that reads two files of examples."""
    (tmp_path / "out").mkdir()
    for split in ("dev", "test"):
        write_rows(tmp_path / f"heldout/{split}.jsonl", [])
    return Inputs(
        paths={
            "base": ROUNDS / "tiny" / "base",
            "heldout": tmp_path / "heldout",
            "human:a": tmp_path / "a.jsonl",
            "human:b": tmp_path / "b.jsonl",
        },
        workspace=Workspace(tmp_path),
        resources=Resources(reject_share=0.5),
        machine=tmp_path / "machine.json",
    )


def read(inputs: Inputs) -> tuple[list[str], dict[str, Any], list[dict[str, Any]]]:
    """Ids of the examples that stay, the funnel, and the dropped rows."""
    folder = inputs["human:a"].parent / "out"
    out = Output(folder, lambda done, total: None)
    run(inputs, HumanStage(splits=SPLITS, decontaminate=Decontaminate()), out)
    funnel = out.close()["funnel"][0]
    kept, dropped = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "dropped")
    )
    return [row["id"] for row in kept], funnel, dropped


def test_examples_of_held_out_prompts_are_dropped_also_when_steered(inputs: Inputs) -> None:
    test, dev, train = (question_of(split) for split in ("test", "dev", "train"))
    steered = dialog(f" {test}\n", "4", id="steered")
    steered["messages"].insert(0, {"role": "system", "content": "Be brief."})
    longer = dialog(test, "4", id="longer")
    longer["messages"] += dialog(train, "5")["messages"]
    rows = [dialog(dev, "2", id="held"), steered, longer, dialog(train, "6", id="mine")]
    write_rows(inputs["human:a"], rows)
    write_rows(inputs["human:b"], [dialog(train, "8", id="mine"), dialog(train, "10", id="x")])
    with inputs["human:b"].open("a") as file:
        file.write('{"messages": []}\n')
    kept, funnel, dropped = read(inputs)
    assert kept == ["mine", "x"]
    assert funnel == {
        "name": "human",
        "rows_in": 7,
        "rows_out": 2,
        "dropped": {
            "belongs to dev": 1,
            "belongs to test": 2,
            "duplicate id": 1,
            "malformed": 1,
        },
        "changed": {},
    }
    assert [row["id"] for row in dropped if "file" in row] == ["b.jsonl:3"]


def test_too_many_malformed_examples_stop(inputs: Inputs) -> None:
    write_rows(inputs["human:a"], [dialog(question_of("train"), "6"), {}, {"messages": 3}])
    write_rows(inputs["human:b"], [])
    with pytest.raises(BadInput, match=r"a\.jsonl: 2 of 3 rows are malformed"):
        read(inputs)
    lenient = replace(inputs, resources=Resources(reject_share=0.7))
    assert len(read(lenient)[0]) == 1
