"""Paired comparisons: what the intervals mean, on numbers that can be checked by hand."""

from math import sqrt
from pathlib import Path
from statistics import NormalDist

import pytest

from posttrain.comparison import Prompted, answers, difference, levels, rate_of
from posttrain.errors import Damaged
from posttrain.statistics import mean_interval, stratified_mean
from posttrain.tables import write_rows

MIX = {"math": 0.75, "code": 0.25}


def test_a_stratified_mean_weighs_strata_and_adds_their_variances() -> None:
    found = stratified_mean({"math": [0.0, 1.0, 1.0, 0.0], "code": [1.0, 0.0]}, MIX, 0.95)
    assert found.value == pytest.approx(0.5)
    spread = 0.75**2 * (1 / 3) / 4 + 0.25**2 * 0.5 / 2
    half = NormalDist().inv_cdf(0.975) * sqrt(spread)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert found.num == 6


def test_one_stratum_is_the_plain_mean() -> None:
    values = [0.2, 0.4, 0.9, 0.5]
    found = stratified_mean({"math": values, "code": []}, MIX, 0.9)
    plain = mean_interval(values, 0.9)
    assert (found.value, found.low, found.high) == pytest.approx(
        (plain.value, plain.low, plain.high)
    )


def test_nothing_to_average_is_an_error() -> None:
    with pytest.raises(ValueError, match="weight"):
        stratified_mean({"math": []}, MIX, 0.95)


def prompted(*passed: float, level: int = 1) -> dict[str, Prompted]:
    return {f"p{i}": Prompted("math", level, share) for i, share in enumerate(passed)}


def test_pairing_by_prompt_narrows_the_interval() -> None:
    before, after = prompted(0.0, 0.25, 0.5, 0.75), prompted(0.1, 0.35, 0.6, 0.85)
    found = difference([(before, after)], MIX, 0.95)
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-12)
    alone = rate_of(after, MIX, 0.95)
    assert alone is not None
    assert alone.high - alone.low > 0.5


def test_only_prompts_that_both_answered_count_and_levels_can_be_picked() -> None:
    before = {"a": Prompted("math", 1, 0.0), "b": Prompted("math", 6, 0.0)}
    after = {"b": Prompted("math", 6, 0.5), "c": Prompted("math", 6, 1.0)}
    found = difference([(before, after)], MIX, 0.95, level=6)
    assert found is not None
    assert (found.value, found.num) == (0.5, 1)
    assert difference([(before, after)], MIX, 0.95, level=1) is None
    assert levels(before) == [1, 6]


def test_answers_are_read_by_split_and_mode(tmp_path: Path) -> None:
    row = {"prompt_id": "p", "capability": "math", "level": 2, "split": "test", "mode": "sampled"}
    write_rows(
        tmp_path / "responses.jsonl",
        [
            {**row, "passed": True},
            {**row, "passed": False},
            {**row, "passed": False, "mode": "greedy"},
            {**row, "passed": False, "split": "dev"},
            {**row, "prompt_id": "unverified"},
        ],
    )
    assert answers(tmp_path, "test", "sampled") == {"p": Prompted("math", 2, 0.5)}
    with pytest.raises(Damaged, match=r"responses\.jsonl: missing"):
        answers(tmp_path / "nowhere", "test", "sampled")
