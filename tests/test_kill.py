"""The short form of bench/kill.py: a run killed three times ends like one that never was."""

import random
from pathlib import Path

import pytest

from bench.kill import TARGETS, run_to_end, run_with_kills, weights
from bench.small import small_workspace


@pytest.mark.timeout(900)
def test_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    reference = small_workspace(tmp_path / "reference", rounds=1, num_prompts=12)
    run_to_end(reference)
    killed = small_workspace(tmp_path / "killed", rounds=1, num_prompts=12)
    kills = run_with_kills(killed, random.Random(0), most=3, life=(3, 6))
    assert {kill["target"] for kill in kills} == set(TARGETS)
    assert weights(killed) == weights(reference)
    assert len(weights(reference)) == 10
