"""How good a reward model is: numbers on made-up scores, and the command on a real tiny model."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from posttrain.reward_measures import (
    LENGTH_DIFFERENCES,
    ScoredPair,
    calibration,
    measures,
    spearman,
)
from posttrain.rows import Preference
from posttrain.scoring import Dialog, RewardScorer
from posttrain.settings.resources import Resources
from posttrain.settings.training import RewardSettings
from posttrain.statistics import wilson
from posttrain.tables import write_rows
from posttrain.training.job import Job
from posttrain.training.reward import train_reward
from tests.small_round import posttrain
from tests.tiny_model import TEMPLATE, make_model, preferences


def pair(number: int, chosen: str, rejected: str, **more: Any) -> Preference:
    sides = {"chosen": chosen, "rejected": rejected}
    return Preference.model_validate(
        {
            "id": f"p{number}",
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "strength": "better",
            **{name: [{"role": "assistant", "content": text}] for name, text in sides.items()},
            **more,
        }
    )


def rate(hits: int, num: int) -> dict[str, Any]:
    return vars(wilson(hits, num, 0.95))


def test_accuracy_stands_beside_longer_wins_in_every_group() -> None:
    scored = [
        ScoredPair(pair(0, "a" * 20, "b", capability="math", source="mine"), 2.0, 1.0),
        ScoredPair(pair(1, "a", "b" * 20, capability="math", batch="round-1"), 0.0, 1.0),
        ScoredPair(pair(2, "aa", "bb", capability="code", subset="hep"), 1.0, 1.0),
        ScoredPair(pair(3, "a" * 7, "b" * 10, strength="slightly better"), 3.0, 1.0),
        ScoredPair(pair(4, "a" * 10, "b" * 7, edited=None), 3.0, 1.0),
    ]
    found = measures(scored)
    assert found["all"] == {"accuracy": rate(3, 5), "longer_wins": rate(2, 5)}
    assert found["capability"] == {
        "code": {"accuracy": rate(0, 1), "longer_wins": rate(0, 1)},
        "math": {"accuracy": rate(1, 2), "longer_wins": rate(1, 2)},
    }
    assert list(found["strength"]) == ["slightly better", "better"]
    assert {name: one["accuracy"]["num"] for name, one in found["source"].items()} == {
        "hep": 1,
        "mine": 1,
        "round-1": 1,
    }
    expected = [rate(0, 1), rate(1, 1), rate(0, 1), rate(1, 1), rate(1, 1)]
    assert [one["accuracy"] for one in found["length_difference"].values()] == expected
    assert tuple(found["length_difference"]) == LENGTH_DIFFERENCES


def test_an_edit_is_the_best_of_its_pair_and_a_ranking_its_ends() -> None:
    texts = ["a" * 30, "b", "c" * 12]
    ranked = [[{"role": "assistant", "content": text}] for text in texts]
    row = Preference.model_validate(
        {"id": "r", "prompt": [{"role": "user", "content": "q"}], "ranked": ranked,
         "strength": "better"}
    )  # fmt: skip
    assert ScoredPair(row, 1.0, 0.0).lengths == (30, 12)
    edited = pair(0, "aa", "bbb", edited=[{"role": "assistant", "content": "e" * 9}])
    assert ScoredPair(edited, 1.0, 0.0).lengths == (9, 3)


def test_a_calibrated_model_has_no_error_and_a_boaster_has() -> None:
    rng = random.Random(0)
    gaps = []
    for _ in range(20000):
        size = rng.uniform(0, 4)
        gaps.append(size if rng.random() < 1 / (1 + math.exp(-size)) else -size)
    honest = calibration(gaps)
    boasting = calibration([4 * gap for gap in gaps])
    assert honest["num"] == 20000 == sum(one["num"] for one in honest["bins"])
    assert honest["ece"] < 0.02
    assert boasting["ece"] > 0.1
    assert calibration([math.log(3), math.log(3), math.log(3), -math.log(3)])["ece"] == (
        pytest.approx(0.0)
    )
    assert calibration([1e6, -1e6])["ece"] == pytest.approx(0.5)
    assert calibration([0.0, 0.0])["ece"] == 0.0
    assert calibration([])["ece"] is None


def test_correlation_is_of_ranks_and_within_a_prompt_free_of_who_was_preferred() -> None:
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Mean ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4.
    assert spearman([5, 5, 6, 7], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2], [1, 2]) is None
    long_wins = [ScoredPair(pair(0, "a" * 9, "b"), 2.0, 1.0), ScoredPair(pair(1, "a", "bbb"), 1, 2)]
    found = measures([*long_wins, ScoredPair(pair(2, "aaaaa", "b"), 9.0, 7.5)])
    assert found["length_correlation"]["pairs"] > 0.7
    assert found["length_correlation"]["responses"] != found["length_correlation"]["pairs"]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that likes answers with `good` in them."""
    root = tmp_path_factory.mktemp("reward")
    settings = RewardSettings(batch_size=8, learning_rate=3e-3, epochs=4, max_length=128)
    job = Job(root / "work", Resources(device="cpu"), "float32", TEMPLATE)
    train_reward(make_model(root / "base"), preferences(60), root / "model", settings, job)
    return root / "model"


def measured(reward: Path, rows: list[Any], path: Path, *more: str) -> dict[str, Any]:
    write_rows(path, rows)
    ended = posttrain("measure-rm", str(reward), str(path), "--device", "cpu", "--json", *more)
    assert (ended.code, ended.err) == (0, ""), ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_our_rows_and_a_benchmarks_give_the_same_accuracy(reward: Path, tmp_path: Path) -> None:
    ours = [row.model_copy(update={"edited": None}) for row in preferences(30)]
    found = measured(reward, ours, tmp_path / "ours.jsonl")
    scorer = RewardScorer(reward, None)
    best, worst = (
        scorer.score([Dialog((*row.prompt, *row.ranking()[end])) for row in ours])
        for end in (0, -1)
    )
    won = sum(b is not None and w is not None and b > w for b, w in zip(best, worst, strict=True))
    assert found["measures"]["all"]["accuracy"] == rate(won, 30)
    assert won > 27
    assert (found["pairs"], found["too_long"], found["malformed"]) == (30, 0, 0)
    assert found["measures"]["strength"]["better"] == found["measures"]["all"]

    texts, dialogs = [], []
    for number, row in enumerate(ours):
        subset = ("chat", "hep-python")[number % 2]
        sides = {"chosen": row.ranking()[0], "rejected": row.ranking()[-1]}
        texts.append(
            {
                "id": number,
                "prompt": row.prompt[0].content,
                **{name: side[0].content for name, side in sides.items()},
                "chosen_model": "x",
                "subset": subset,
            }
        )
        prompt = [turn.to_json() for turn in row.prompt]
        whole = {name: [*prompt, side[0].to_json()] for name, side in sides.items()}
        dialogs.append({"prompt": prompt, **whole, "subset": subset})
    for rows in (texts, dialogs):
        other = measured(reward, rows, tmp_path / "bench.jsonl")["measures"]
        assert other["all"] == found["measures"]["all"]
        assert other["calibration"] == found["measures"]["calibration"]
        assert list(other["source"]) == ["chat", "hep-python"]
        assert other["strength"] == other["capability"] == {}


def test_pairs_too_long_and_malformed_are_counted_and_the_table_is_printed(
    reward: Path, tmp_path: Path
) -> None:
    rows: list[Any] = [row.to_json() for row in preferences(20)]
    rows[3]["rejected"] = [{"role": "assistant", "content": "it " * 400}]
    rows[5]["chosen"] = rows[5]["rejected"]
    rows[7]["capability"] = "[red]"
    found = measured(reward, rows, tmp_path / "pairs.jsonl")
    assert (found["pairs"], found["too_long"], found["malformed"]) == (18, 1, 1)
    shown = posttrain("measure-rm", str(reward), str(tmp_path / "pairs.jsonl"), "--device", "cpu")
    assert shown.code == 0, shown.err
    for text in ("by strength", "better", "[red]", "longer wins", "calibration error", "Spearman"):
        assert text in shown.out
    assert "left out: 1 pairs too long, 1 rows malformed" in shown.out


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": "q", "chosen": "a"}, "give either chosen and rejected, or ranked"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "two responses of the ranking are equal"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "turn 1 (assistant) is empty"),
        ({"prompt": "q", "chosen": "a<|eot_id|>", "rejected": "b"}, "control token <|eot_id|>"),
        ({"prompt": "q", "chosen": "it " * 400, "rejected": "b"}, "none of 1 pairs fits the model"),
        (["q"], "expected a JSON object, found list"),
    ],
)
def test_what_is_no_pair_is_said_in_a_line(
    reward: Path, tmp_path: Path, row: Any, line: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    ended = posttrain("measure-rm", str(reward), str(tmp_path / "pairs.jsonl"), "--device", "cpu")
    assert ended.code == 2
    assert line in ended.one_line()
