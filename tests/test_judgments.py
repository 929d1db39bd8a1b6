"""What judgments of a task state together, who is heeded, how well annotators and a judge agree.

pytest tests/test_judgments.py
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import BadInput
from posttrain.judging.askers import Question
from posttrain.judging.pairs import ModelComparer, SimulatedComparer, Verdicts, judgment_of
from posttrain.judging.simulated import SimulatedJudge
from posttrain.judgments.heeded import NOBODY, answered_share, heed
from posttrain.judgments.preferences import preference_of
from posttrain.judgments.quality import agreement, krippendorff_alpha, quality_of
from posttrain.rows import Candidate, Judgment, Preference, Prompt, Strength
from posttrain.settings.annotation import FileAnnotator, JudgeAnnotator, JudgeHelp
from tests.made_tasks import said, task

PAIR = Path("data_quality/rubrics/pair.jinja")


def judged(number: int, who: str, verdict: str, **fields: Any) -> Judgment:
    """`a+` is significantly better, `a` better, `a-` slightly, `a--` marginally; so for b."""
    strengths = {
        "+": "significantly better",
        "": "better",
        "-": "slightly better",
        "--": "marginally better",
    }
    choice, sign = (
        (verdict[0], verdict[1:]) if verdict[0] in "ab" and verdict != "bad" else (verdict, "")
    )
    strength = strengths[sign] if choice in ("a", "b") else None
    return Judgment.model_validate(
        {
            "id": f"t{number}/{who}",
            "task": f"t{number}",
            "annotator": who,
            "choice": choice,
            "strength": strength,
            **fields,
        }
    )


# ---------------------------------------------------------------- several judgments of a task


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["a+", "a-"], "slightly better"),
        (["a+", "a", "a-"], "better"),
        (["a", "b"], "annotators disagree: no preference"),
        (["a", "tie"], "annotators disagree: no preference"),
        (["a", "b", "a+"], "better"),
        (["tie", "tie"], "tie: a judgment, no preference"),
        (["skip", "a"], "better"),
        (["skip", "skip"], "skip: a judgment, no preference"),
    ],
)
def test_several_judgments_make_one_preference_or_none(verdicts: list[str], expected: str) -> None:
    given = [judged(0, f"n{place}", one) for place, one in enumerate(verdicts)]
    found = preference_of(task(0), given)
    if isinstance(found, str):
        assert found == expected
        return
    assert (str(found.strength), found.chosen) == (expected, task(0).a)
    mine = {one.id for one in given if one.choice == "a"}
    assert {*found.parents} == {*mine, "t0", "p0"}
    # The order in which people worked changes nothing.
    assert preference_of(task(0), given[::-1]) == found


def test_an_edit_of_either_ranks_first_and_a_known_answer_is_no_preference() -> None:
    first, second = judged(0, "ana", "a"), judged(0, "ben", "a", edited=[said("better")])
    found = preference_of(task(0), [first, second])
    assert isinstance(found, Preference)
    assert [side[0].content for side in found.ranking()] == ["better", "answer a0", "answer b0"]
    told = preference_of(task(0, gold="a"), [first])
    assert told == "gold: a check of annotators, no preference"


# ---------------------------------------------------------------- agreement


def coincidences(data: Sequence[Sequence[int | None]], values: Sequence[int]) -> Any:
    """Of a table of raters × units with gaps, by the definition."""
    table = np.zeros((len(values), len(values)))
    for unit in zip(*data, strict=True):
        given = [values.index(one) for one in unit if one is not None]
        for place, one in enumerate(given):
            for other_place, other in enumerate(given):
                if place != other_place:
                    table[one, other] += 1 / (len(given) - 1)
    return table


def test_alpha_is_what_krippendorffs_example_has() -> None:
    # Four observers, twelve units, five values (Krippendorff 2011, section C).
    gap = None
    data = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
        [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
    ]
    table = coincidences(data, (1, 2, 3, 4, 5))
    nominal, ordinal = krippendorff_alpha(table, "nominal"), krippendorff_alpha(table, "ordinal")
    assert nominal is not None and ordinal is not None
    assert (round(nominal, 3), round(ordinal, 3)) == (0.743, 0.815)


def test_agreement_has_its_ends_and_an_interval() -> None:
    verdicts = ["a+", "a", "a--", "tie", "b-", "b+"] * 10
    same = [judged(n, who, one) for n, one in enumerate(verdicts) for who in ("ana", "ben")]
    whole = agreement(same, 0.95)
    assert whole["tasks"] == 60 and whole["same"]["value"] == 1
    assert {one["value"] for one in whole["alpha"].values()} == {1.0}
    turned = {"a": "b", "b": "a"}
    against = [
        judged(n, "ben", turned.get(one[0], one[0]) + one[1:] if one != "tie" else "tie")
        for n, one in enumerate(verdicts)
    ]
    contrary = agreement([*same[::2], *against], 0.95)
    assert contrary["alpha"]["side"]["value"] < 0
    side = contrary["alpha"]["side"]
    assert side["low"] <= side["value"] <= side["high"]
    # Skips say nothing, one judgment agrees with nobody, and all alike leaves nothing to expect.
    alone = agreement(
        [judged(0, "ana", "a"), judged(0, "ben", "skip"), judged(1, "ana", "a")], 0.95
    )
    assert alone == {"tasks": 0, "same": None, "alpha": {"side": None, "strength": None}}
    equal = agreement([judged(n, who, "a") for n in range(3) for who in "xy"], 0.95)
    assert equal["same"]["value"] == 1 and equal["alpha"]["side"] is None


@given(st.lists(st.sampled_from(["a+", "a", "b", "b--", "tie", "skip"]), min_size=2, max_size=30))
def test_agreement_does_not_depend_on_the_order_of_work(verdicts: list[str]) -> None:
    rows = [judged(n // 2, f"n{n % 2}", one) for n, one in enumerate(verdicts)]
    assert agreement(rows, 0.9) == agreement(rows[::-1], 0.9)


def test_habits_are_told_of_each_annotator() -> None:
    tasks = [task(n, gold="a" if n >= 8 else None) for n in range(11)]
    rows = [
        *(judged(n, "ana", "a+", first="a", seconds=10.0 + n) for n in range(4)),
        judged(4, "ana", "b", first="a", seconds=100.0, edited=[said("x")]),
        judged(5, "ana", "tie"),
        judged(6, "ana", "skip"),
        judged(8, "ana", "a"),
        judged(9, "ana", "tie"),
        judged(10, "ana", "skip"),
        judged(0, "ben", "b"),
    ]
    told = quality_of(tasks, rows, 0.95)
    ana = told["annotators"]["ana"]
    assert {key: ana[key] for key in ("judgments", "ties", "skips", "edits", "seconds")} == {
        "judgments": 10, "ties": 2, "skips": 2, "edits": 1, "seconds": 12.0,
    }  # fmt: skip
    assert (ana["gold"]["value"], ana["gold"]["num"]) == (0.5, 2)
    assert (ana["first"]["value"], ana["first"]["num"]) == (0.8, 5)
    assert ana["strengths"] == {
        "marginally better": 0, "slightly better": 0, "better": 2, "significantly better": 4,
    }  # fmt: skip
    assert told["annotators"]["ben"]["gold"] is None
    assert told["agreement"]["tasks"] == 1


# ---------------------------------------------------------------- who is heeded


def test_who_misjudges_known_answers_is_flagged_and_left_out_where_the_plan_says_so() -> None:
    tasks = [task(n, gold="a" if n >= 5 else None) for n in range(10)]
    rows = [judged(n, "ana", "a") for n in range(10)]
    rows += [judged(n, "bad", "b") for n in range(10)]
    asked = {"min_accuracy": 0.8, "min_gold": 5}
    found = heed(tasks, rows, [], FileAnnotator.model_validate({"quality": asked}), 0.95)
    assert found.told["flagged"] == ["bad"] and found.told["left_out"] == []
    assert len(found.judgments()) == 20
    strict = FileAnnotator.model_validate({"quality": {**asked, "leave_out": True}})
    found = heed(tasks, rows, [], strict, 0.95)
    assert {one.annotator for one in found.judgments()} == {"ana"}
    assert [reason for _, reason in found.dropped] == ["left out: the judgments of bad"] * 10
    # Whom nobody heeds agrees with nobody: neither with people nor with the judge.
    strict_judge = strict.model_copy(update={"judge": JudgeHelp()})
    told = heed(tasks, rows, [judged(n, "judge m", "b") for n in range(5)], strict_judge, 0.95).told
    assert told["agreement"]["tasks"] == 0 and told["judge"]["all"]["value"] == 0
    # Too few known answers say nothing.
    patient = FileAnnotator.model_validate({"quality": {**asked, "min_gold": 6, "leave_out": True}})
    assert heed(tasks, rows, [], patient, 0.95).told["flagged"] == []


def test_nothing_is_lost_between_judgments_and_what_is_heeded() -> None:
    tasks = [task(n, times=2 if n == 1 else None) for n in range(5)]
    rows = [
        judged(0, "ana", "a"),
        judged(0, "ana", "b"),
        judged(1, "ana", "a"),
        judged(1, NOBODY, "skip"),
        judged(2, NOBODY, "skip"),
    ]
    found = heed(tasks, rows, [], FileAnnotator(), 0.95)
    assert sorted(reason for _, reason in found.dropped) == [
        "judged before by the same annotator",
        "unanswered",
        "unanswered",
        "unanswered: the collection was closed",
        "unanswered: the collection was closed",
    ]
    assert len(found.judgments()) + 3 == len(rows)
    assert list(found.told["annotators"]) == ["ana"]
    # Six are wanted: one of task 0; both of 1 and that of 2, since they were closed.
    assert answered_share(tasks, rows) == 4 / 6
    assert answered_share([task(0, gold="a")], []) == 1.0


def labels(num: int, verdict: str = "a") -> list[Judgment]:
    return [judged(n, "judge m", verdict) for n in range(num)]


def test_a_judge_labels_what_people_left_only_where_it_agrees_with_them() -> None:
    tasks = [task(n, capability="math" if n % 2 else "code") for n in range(40)]
    tasks.append(task(40, gold="a"))
    # People agree with the judge in math alone, and leave tasks 30 to 39.
    rows = [judged(n, "ana", "a" if n % 2 else "b") for n in range(30)]
    rows.append(judged(30, "ana", "skip"))
    wanted = {"labels": "agreeing", "min_shared": 10, "min_agreement": 0.9}
    annotator = FileAnnotator.model_validate({"judge": wanted})
    found = heed(tasks, rows, labels(41), annotator, 0.95)
    judge = found.told["judge"]
    assert (
        judge["by_capability"]["math"]["value"] == 1
        and judge["by_capability"]["code"]["value"] == 0
    )
    assert (judge["all"]["num"], judge["trusted"], judge["labelled"]) == (30, ["math"], 5)
    by_judge = {one.task for one in found.judgments() if one.annotator == "judge m"}
    assert by_judge == {f"t{n}" for n in (31, 33, 35, 37, 39)}
    assert sum(reason == "unanswered" for _, reason in found.dropped) == 4
    few = FileAnnotator.model_validate({"judge": {**wanted, "min_shared": 16}})
    assert heed(tasks, rows, labels(41), few, 0.95).told["judge"]["labelled"] == 0
    shown = FileAnnotator.model_validate({"judge": {"labels": "none"}})
    assert "labelled" not in heed(tasks, rows, labels(41), shown, 0.95).told["judge"]
    alone = heed(tasks, [], labels(39), JudgeAnnotator(type="judge"), 0.95)
    assert alone.told["judge"]["labelled"] == 39 and alone.dropped == [("t39", "unanswered")]


def test_a_judge_is_compared_on_tasks_that_two_people_judged() -> None:
    tasks = [task(n) for n in range(4)]
    rows = [judged(n, who, "a") for n in range(2) for who in ("ana", "ben")]
    rows += [judged(2, "ana", "a"), judged(2, "ben", "b"), judged(3, "ana", "tie")]
    annotator = FileAnnotator.model_validate({"judge": {}})
    told = heed(tasks, rows, labels(4), annotator, 0.95).told["judge"]
    # Where people differ nobody can be right; a tie is a choice of its own.
    assert (told["all"]["value"], told["all"]["num"]) == (2 / 3, 3)
    assert (told["shared"]["value"], told["shared"]["num"]) == (1, 2)


# ---------------------------------------------------------------- the judge


class Scripted:
    """Answers in turn, and remembers what it was asked."""

    identity = "scripted"

    def __init__(self, *answers: str | None) -> None:
        self.answers, self.asked = list(answers), list[Question]()

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        self.asked += questions
        return [self.answers.pop(0) for _ in questions]

    def close(self) -> None:
        pass


def test_a_judge_is_asked_in_both_orders_with_bounded_answers() -> None:
    asker = Scripted("2", "8", "1", "3")
    verdicts = ModelComparer(asker, PAIR, "judge m").compare([task(0), task(1)])
    assert verdicts == [Verdicts(2, 8), Verdicts(1, 3)]
    forward, backward = asker.asked[:2]
    assert forward.text.index("answer a0") < forward.text.index("answer b0")
    assert backward.text.index("answer b0") < backward.text.index("answer a0")
    assert forward.choices == tuple("123456789")


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [
        (1, 9, ("a", "significantly better")),
        (1, 7, ("a", "slightly better")),
        (8, 3, ("b", "slightly better")),
        (6, 4, ("b", "marginally better")),
        (2, 2, ("tie", None)),
        (8, 8, ("tie", None)),
        (5, 5, ("tie", None)),
        (1, 5, ("tie", None)),
        (None, 3, None),
        (3, None, None),
    ],
)
def test_a_verdict_that_flips_is_a_tie_and_a_missing_one_is_none(
    forward: int | None, backward: int | None, expected: tuple[str, str | None] | None
) -> None:
    made = judgment_of(task(0), Verdicts(forward, backward), "judge m")
    if expected is None:
        assert made is None
        return
    assert made is not None and (made.choice, made.strength) == expected
    assert (made.annotator, made.task) == ("judge m", "t0")


@pytest.mark.parametrize("answer", ["10", "better", "first", "", None, "1.", "0"])
def test_what_is_no_verdict_stays_unscored(answer: str | None) -> None:
    (found,) = ModelComparer(Scripted(answer, "9"), PAIR, "judge m").compare([task(0)])
    assert found == Verdicts(None, 9) and judgment_of(task(0), found, "judge m") is None


def test_a_rubric_of_another_scale_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "pair.jinja"
    other.write_text("{% set scale = [1, 2] %}{{ first }} or {{ second }}?")
    with pytest.raises(BadInput, match="scale 1 to 9"):
        ModelComparer(Scripted(), other, "judge m").compare([task(0)])


def test_a_simulated_judge_compares_its_grades() -> None:
    grades = {
        "answer a0": 3,
        "answer b0": 1,
        "answer a1": 2,
        "answer b1": 3,
        "answer a2": 2,
        "answer b2": 2,
    }

    def grade(prompt: Prompt, response: str, passed: bool) -> int | None:
        assert passed == ("a" in response.partition(" ")[2])
        return grades.get(response)

    rules = Path("people.py")

    def verify(pairs: Sequence[tuple[Candidate, Prompt]]) -> list[bool]:
        return ["a" in one.response.partition(" ")[2] for one, _ in pairs]

    judge = SimulatedComparer(SimulatedJudge(rules, lambda _: {"grade": grade}), verify)
    found = judge.compare([task(n) for n in range(4)])
    assert found == [Verdicts(1, 9), Verdicts(8, 2), Verdicts(5, 5), Verdicts(None, None)]
    made = [judgment_of(task(n), one, judge.label) for n, one in enumerate(found)]
    assert made[0] is not None and made[0].strength == Strength.SIGNIFICANTLY
    odd = SimulatedComparer(SimulatedJudge(rules, lambda _: {"grade": lambda *_: 5}), verify)
    with pytest.raises(BadInput, match="grade answered 5 for t0/a, expected 1 to 3"):
        odd.compare([task(0)])
