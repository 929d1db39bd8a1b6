"""A collection's store: who gets which task, what is taken and refused, and that nothing is lost.

pytest tests/test_annotate_store.py
"""

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from posttrain.annotate.answers import LONGEST_EDIT, Answer, Refused, Side
from posttrain.annotate.store import Store
from posttrain.errors import BadInput
from posttrain.rows import Judgment, Strength, Task
from tests import made_tasks
from tests.made_tasks import said

BETTER = Answer("first", Strength.BETTER)


def task(number: int, times: int = 1) -> Task:
    return made_tasks.task(number, id=f"t{number:04}", times=times)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def collection(folder: Path, num: int = 6, times: int = 1, names: str = "ana ben") -> Store:
    store = Store(folder / "round.sqlite", clock=Clock())
    store.publish([task(number, times) for number in range(num)])
    for name in names.split():
        store.add_annotator(name)
    return store


def judge_all(store: Store, name: str, answer: Answer = BETTER) -> list[str]:
    done = []
    while (offered := store.next_task(name)) is not None:
        store.submit(name, offered.task.id, answer)
        done.append(offered.task.id)
    return done


def test_tasks_come_in_order_and_nobody_gets_anothers(tmp_path: Path) -> None:
    store = collection(tmp_path)
    first, second = store.next_task("ana"), store.next_task("ben")
    assert first is not None and second is not None
    assert (first.task.id, second.task.id) == ("t0000", "t0001")
    # A page that is loaded again shows the same task, the same way around.
    assert store.next_task("ana") == first
    ana, ben = judge_all(store, "ana"), judge_all(store, "ben")
    assert sorted(ana + ben) == [f"t{n:04}" for n in range(6)]
    assert store.progress("ana")[:3] == (6, 6, len(ana))


def test_a_task_that_is_judged_twice_goes_to_two_people(tmp_path: Path) -> None:
    store = collection(tmp_path, num=4, times=2, names="ana ben cem")
    assert len(judge_all(store, "ana")) == 4
    rest = judge_all(store, "ben") + judge_all(store, "cem")
    assert sorted(rest) == [f"t{n:04}" for n in range(4)]
    assert Counter(one.task for one in store.judgments()) == {f"t{n:04}": 2 for n in range(4)}


def test_a_task_left_open_returns(tmp_path: Path) -> None:
    clock = Clock()
    store = Store(tmp_path / "round.sqlite", lease_seconds=60, clock=clock)
    store.publish([task(0)])
    for name in ("ana", "ben"):
        store.add_annotator(name)
    assert store.next_task("ana") is not None
    assert store.next_task("ben") is None
    clock.now += 61
    assert store.next_task("ben") is not None
    with pytest.raises(Refused, match="not given to you, or somebody else has it by now"):
        store.submit("ana", "t0000", BETTER)
    store.submit("ben", "t0000", BETTER)


def test_both_sides_are_shown_first_equally_often_to_each(tmp_path: Path) -> None:
    store = collection(tmp_path, num=61, times=2)
    for name in ("ana", "ben"):
        judge_all(store, name)
        sides = Counter(one.first for one in store.judgments() if one.annotator == name)
        assert abs(sides["a"] - sides["b"]) <= 1
    chosen = Counter(one.choice for one in store.judgments())
    assert chosen["a"] and chosen["b"]


def test_a_judgment_is_stated_by_the_responses_and_not_their_places(tmp_path: Path) -> None:
    store = collection(tmp_path, num=20, names="ana")
    for _ in range(20):
        offered = store.next_task("ana")
        assert offered is not None
        edit = f"better {offered.first}"
        made = store.submit("ana", offered.task.id, Answer("first", Strength.BETTER, edit, "why"))
        assert made.choice == offered.first and made.reason == "why"
        assert made.edited is not None and made.edited[0].content == edit
    assert {one.first == one.choice for one in store.judgments()} == {True}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("first"), "strength belongs to choice a or b"),
        (Answer("tie", Strength.BETTER), "strength belongs to choice a or b"),
        (Answer("skip"), "say why you skip"),
        (Answer("first", Strength.BETTER, " "), "the edit is empty"),
        (Answer("first", Strength.BETTER, "x" * (LONGEST_EDIT + 1)), "the edit has more than"),
        (Answer("skip", reason="x" * 3000), "the reason has more than"),
    ],
)
def test_what_is_no_judgment_is_refused_and_changes_nothing(
    tmp_path: Path, answer: Answer, reason: str
) -> None:
    store = collection(tmp_path)
    offered = store.next_task("ana")
    assert offered is not None
    with pytest.raises(Refused, match=reason):
        store.submit("ana", offered.task.id, answer)
    other = offered.task.b if offered.first == "a" else offered.task.a
    with pytest.raises(Refused, match="equals the response that was not chosen"):
        store.submit("ana", offered.task.id, Answer("first", Strength.BETTER, other[0].content))
    assert store.judgments() == [] and store.next_task("ana") == offered


def test_an_unknown_task_a_foreign_annotator_and_a_closed_round_are_refused(tmp_path: Path) -> None:
    store = collection(tmp_path)
    offered = store.next_task("ana")
    assert offered is not None
    with pytest.raises(Refused, match="no task t9"):
        store.submit("ana", "t9", BETTER)
    with pytest.raises(Refused, match="not given to you"):
        store.submit("ben", offered.task.id, BETTER)
    with pytest.raises(Refused, match="no annotator eve"):
        store.submit("eve", offered.task.id, BETTER)
    store.close()
    assert store.closed
    for refused in (
        lambda: store.submit("ana", offered.task.id, BETTER),
        lambda: store.next_task("ana"),
        lambda: store.undo("ana"),
    ):
        with pytest.raises(Refused, match="closed"):
            refused()
    assert store.judgments() == []


def test_the_same_judgment_twice_is_kept_once_and_another_is_refused(tmp_path: Path) -> None:
    store = collection(tmp_path)
    offered = store.next_task("ana")
    assert offered is not None
    made = store.submit("ana", offered.task.id, BETTER)
    assert store.submit("ana", offered.task.id, BETTER) == made
    with pytest.raises(Refused, match="undo that first"):
        store.submit("ana", offered.task.id, Answer("tie"))
    assert store.judgments() == [made] and store.progress()[:3] == (6, 1, 0)


def test_undo_opens_the_task_again_the_same_way_around(tmp_path: Path) -> None:
    store = collection(tmp_path)
    offered = store.next_task("ana")
    assert offered is not None
    store.submit("ana", offered.task.id, BETTER)
    after = store.next_task("ana")
    assert after is not None and after.task.id != offered.task.id
    assert store.undo("ana") == offered.task.id
    assert store.judgments() == []
    assert store.next_task("ana") == offered
    store.submit("ana", offered.task.id, Answer("tie"))
    assert [one.choice for one in store.judgments()] == ["tie"]
    assert store.next_task("ana") == after
    assert store.undo("ben") is None


def test_tokens_are_personal_and_cannot_be_read_from_the_file(tmp_path: Path) -> None:
    store = collection(tmp_path, names="ana")
    token = store.add_annotator("ben")
    assert len(token) >= 32 and store.annotator_of(token) == "ben"
    assert store.annotator_of(token + "x") is None
    renewed = store.add_annotator("ben")
    assert store.annotator_of(token) is None and store.annotator_of(renewed) == "ben"
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("round.sqlite*"))
    assert token.encode() not in stored and renewed.encode() not in stored
    for name in ("", " ", "x" * 101):
        with pytest.raises(BadInput, match="1 to 100 characters"):
            store.add_annotator(name)


def test_other_tasks_never_get_into_a_collection(tmp_path: Path) -> None:
    store = collection(tmp_path)
    store.publish([task(number) for number in range(6)])
    with pytest.raises(BadInput, match="collection of other tasks"):
        store.publish([task(7)])
    assert Store(tmp_path / "round.sqlite").progress()[:3] == (6, 0, 0)


def test_everybody_gets_the_tasks_whose_answer_is_known_among_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "round.sqlite")
    known = [task(100 + n).model_copy(update={"gold": "ab"[n % 2]}) for n in range(5)]
    store.publish([*(task(n) for n in range(80)), *known], gold_share=0.1)
    for name in ("ana", "ben"):
        store.add_annotator(name)
    places = {}
    for name in ("ana", "ben"):
        done = []
        while len(done) < 40:
            offered = store.next_task(name)
            assert offered is not None
            store.submit(name, offered.task.id, BETTER)
            done.append(offered.task.id)
        places[name] = [place for place, one in enumerate(done) if one >= "t0100"]
        # One in each block of ten.
        assert [place // 10 for place in places[name]] == [0, 1, 2, 3]
    assert places["ana"] != places["ben"]
    progress = store.progress("ana")
    assert (progress.judgments_wanted, progress.judged, progress.mine) == (80, 72, 40)
    # What is shown counts both kinds, so that no task is told by its number.
    assert progress.shown == (80, 89)
    last = store.judgments()[-1]
    store.undo("ben")
    again = store.next_task("ben")
    assert again is not None and again.task.id == last.task
    # Once each, then the others alone.
    rest = judge_all(store, "ana")
    assert sum(one < "t0100" for one in rest) == 8 and len(rest) <= 9


def test_agreement_is_counted_on_shared_tasks(tmp_path: Path) -> None:
    store = collection(tmp_path, num=24, times=2)
    for turn in range(24):
        for name in ("ana", "ben"):
            offered = store.next_task(name)
            assert offered is not None
            mine = "first" if offered.first == "a" else "second"
            other = "second" if offered.first == "a" else "first"
            choice = mine if name == "ana" or turn else other
            answer = Answer("skip", reason="unsure") if turn == 23 and name == "ben" else None
            store.submit(
                name,
                offered.task.id,
                answer or Answer(choice, Strength.BETTER),  # type: ignore[arg-type]
            )
            if name == "ben" and turn in (8, 9, 18, 19):
                # Ten at a time: nobody learns what somebody else said of one task.
                told = [
                    (store.progress(n).shared, store.progress(n).agreed) for n in ("ana", "ben")
                ]
                whole = (turn + 1) // 10 * 10
                assert told == [(whole, max(0, whole - 1))] * 2
    for _ in range(5):
        store.undo("ana")
    assert (store.progress("ben").shared, store.progress("ben").agreed) == (10, 9)


def test_a_judgment_is_of_the_order_that_was_shown(tmp_path: Path) -> None:
    store = collection(tmp_path, names="ana")
    offered = store.next_task("ana")
    assert offered is not None
    other: Side = "b" if offered.first == "a" else "a"
    with pytest.raises(Refused, match="the other way round"):
        store.submit("ana", offered.task.id, BETTER, other)
    assert store.judgments() == []
    made = store.submit("ana", offered.task.id, BETTER, offered.first)
    with pytest.raises(Refused, match="the other way round"):
        store.submit("ana", offered.task.id, BETTER, other)
    assert store.judgments() == [made] and made.choice == offered.first


def test_whoever_gets_a_task_again_sees_the_same_order_and_may_submit_late(tmp_path: Path) -> None:
    clock = Clock()
    store = Store(tmp_path / "round.sqlite", lease_seconds=60, clock=clock)
    store.publish([task(number) for number in range(3)])
    for name in ("ana", "ben"):
        store.add_annotator(name)
    first = store.next_task("ana")
    assert first is not None
    clock.now += 61
    # Nobody else has taken it: an hour's edit is not thrown away.
    assert store.next_task("ana") == first
    clock.now += 61
    assert store.next_task("ben") is not None
    with pytest.raises(Refused, match="somebody else has it"):
        store.submit("ana", first.task.id, BETTER, first.first)
    clock.now += 61
    made = store.submit("ana", first.task.id, BETTER, first.first)
    assert made.first == first.first and made.seconds == 122.0


def test_an_edit_with_a_control_token_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "round.sqlite")
    store.publish([task(0)], forbidden=["<|eot_id|>"])
    store.add_annotator("ana")
    assert store.next_task("ana") is not None
    with pytest.raises(Refused, match=r"holds <\|eot_id\|>, which is a control token"):
        store.submit("ana", "t0000", Answer("first", Strength.BETTER, "so <|eot_id|>"))
    made = {"task": "t0000", "choice": "a", "strength": "better", "annotator": "cem"}
    brought = Judgment.model_validate({**made, "edited": [said("so <|eot_id|>")]})
    assert "control token" in store.take([brought])[0] and store.judgments() == []


def test_a_judgment_brought_in_ends_what_somebody_has_open(tmp_path: Path) -> None:
    store = collection(tmp_path)
    offered = store.next_task("ana")
    assert offered is not None
    made = {"task": offered.task.id, "choice": "tie", "annotator": "cem"}
    assert store.take([Judgment.model_validate(made)]) == ["new"]
    with pytest.raises(Refused, match="somebody else has it"):
        store.submit("ana", offered.task.id, BETTER)
    again = store.next_task("ana")
    assert again is not None and again.task.id != offered.task.id
    assert [one.annotator for one in store.judgments()] == ["cem"]


def test_judgments_made_elsewhere_are_taken_once(tmp_path: Path) -> None:
    store = collection(tmp_path)
    base = {"task": "t0001", "choice": "a", "strength": "better", "annotator": "cem"}
    other = {"first": "b", "seconds": 12.5, "at": "2026-01-02T03:04:05.678+02:00"}
    made = Judgment.model_validate({**base, **other, "edited": [said("even better")]})
    wrong = [
        {**base, "task": "t9999"},
        {**base, "strength": "significantly better"},
        {**base, "task": "t0002", "annotator": "nobody"},
        {**base, "task": "t0002", "at": "yesterday"},
        {**base, "task": "t0002", "edited": [said(" ")]},
        {**base, "task": "t0002", "edited": [said("x" * 100_001)]},
        {**base, "task": "t0002", "edited": [said("answer b2")]},
    ]
    told = store.take([made, *(Judgment.model_validate(one) for one in wrong), made])
    assert told[0] == "new" and told[-1] == "known"
    reasons = ("no task", "otherwise", "nobody", "isoformat", "empty", "100,000", "not chosen")
    for got, expected in zip(told[1:-1], reasons, strict=True):
        assert expected in got
    kept, *_ = store.judgments()
    assert (kept.first, kept.seconds, kept.at) == ("b", 12.5, "2026-01-02T01:04:05.678+00:00")
    assert kept.edited is not None and kept.edited[0].content == "even better"
    # Whoever made it has no link, and the task is done; a second one of it helps no other task.
    assert store.annotators() == ["ana", "ben"] and store.progress()[:2] == (6, 1)
    again = made.model_copy(update={"annotator": "dan"})
    assert store.take([again]) == ["new"] and store.progress()[:2] == (6, 1)
    assert "t0001" not in judge_all(store, "ana")
    store.close()
    with pytest.raises(Refused, match="closed"):
        store.take([made])


def test_many_at_once_judge_each_task_once(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(8)]
    store = collection(tmp_path, num=60, names=" ".join(names))
    threads = [threading.Thread(target=judge_all, args=(store, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(one.task for one in store.judgments()) == {f"t{n:04}": 1 for n in range(60)}


WRITER = """
import sys
from pathlib import Path
from posttrain.annotate.answers import Answer
from posttrain.annotate.store import Store
from posttrain.rows import Strength
store = Store(Path(sys.argv[1]))
while (offered := store.next_task(sys.argv[2])) is not None:
    store.submit(sys.argv[2], offered.task.id, Answer("first", Strength.BETTER))
    print(offered.task.id, flush=True)
"""


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    store = collection(tmp_path, num=400)
    acknowledged: list[str] = []
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "round.sqlite"), "ana"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(random.randint(5, 30)):
            acknowledged.append(process.stdout.readline().strip())
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
    kept = [one.task for one in store.judgments()]
    assert len(set(kept)) == len(kept)
    assert set(acknowledged) <= set(kept)
    # At most the one judgment that was on its way at each kill was kept and not acknowledged.
    assert len(kept) - len(acknowledged) <= 3
