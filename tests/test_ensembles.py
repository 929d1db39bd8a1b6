"""Scores of several reward models made one, and the score step that does it."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from posttrain.controller import Run
from posttrain.ensembles import lower_bounds
from posttrain.models.chat import load_tokenizer
from posttrain.rows import Candidate
from posttrain.scoring import Dialog, RewardScorer
from posttrain.settings.resources import Resources
from posttrain.settings.stages import ScoreStage
from posttrain.stages import score
from posttrain.steps.output import Inputs, Output
from posttrain.steps.run_folder import Identity
from posttrain.tables import write_rows
from posttrain.workspace import Workspace
from tests.tiny_model import TEMPLATE, examples, make_model, turn

# Whole numbers: scores that differ do so by more than rounding.
SCORES = st.integers(-50, 50).map(float)
MEMBERS = st.integers(1, 8).flatmap(
    lambda rows: st.lists(st.lists(SCORES, min_size=rows, max_size=rows), min_size=1, max_size=4)
)


def named(lists: list[list[float]]) -> dict[str, list[float]]:
    return {f"rm-{n}": one for n, one in enumerate(lists)}


@given(MEMBERS, st.integers(1, 50), SCORES, st.sampled_from([0.0, 0.5, 2.0]))
def test_a_members_scale_and_offset_say_nothing(
    lists: list[list[float]], scale: int, offset: float, penalty: float
) -> None:
    moved = [[scale * one + offset for one in lists[0]], *lists[1:]]
    expected = lower_bounds(named(lists), penalty)
    assert lower_bounds(named(moved), penalty) == pytest.approx(expected, abs=1e-9)


@given(MEMBERS)
def test_the_mean_and_what_disagreement_costs(lists: list[list[float]]) -> None:
    standard = []
    for one in lists:
        mean, spread = statistics.fmean(one), statistics.pstdev(one)
        standard.append([(value - mean) / spread if spread else 0.0 for value in one])
    for row, (mean, low) in enumerate(
        zip(lower_bounds(named(lists), 0.0), lower_bounds(named(lists), 1.5), strict=True)
    ):
        mine = [one[row] for one in standard]
        assert mean == pytest.approx(statistics.fmean(mine), abs=1e-9)
        assert low == pytest.approx(mean - 1.5 * statistics.pstdev(mine), abs=1e-9)


def test_a_response_that_all_members_like_wins_over_one_that_fools_a_single_one() -> None:
    scores = {"rm-a": [1.0, 4.0, 0.0], "rm-b": [1.0, 0.0, 0.0], "rm-c": [1.0, 0.1, 0.0]}
    honest, fooling, _ = lower_bounds(scores, 1.0)
    assert honest > fooling
    assert lower_bounds({"rm-a": [], "rm-b": []}, 1.0) == []


def test_equal_scores_of_a_member_add_nothing() -> None:
    assert lower_bounds({"a": [0.1] * 3, "b": [1.0, 2.0, 3.0]}, 0.0) == pytest.approx(
        [-(1.5**0.5) / 2, 0.0, 1.5**0.5 / 2]
    )


PLAN = """
base: base
mix: {math: 1.0}
bootstrap: {human: [rows.jsonl]}
rounds: [{prompts: [{path: rows.jsonl}], preferences: [rows.jsonl]}]
evaluation: {sources: [{path: rows.jsonl}]}
tasks: {models: [previous]}
"""


def planned(root: Path, *overrides: str) -> Run:
    """A plan of one round, resolved; nothing runs."""
    for path, text in (
        ("rounds/made.yaml", PLAN),
        ("rows.jsonl", "{}"),
        ("base/config.json", "{}"),
    ):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text)
    return Run.open(Workspace(root), "made", list(overrides))


def identities(run: Run) -> dict[str, str]:
    found = {name: run.folder.identity(step) for name, step in run.steps.items()}
    return {name: one.fingerprint for name, one in found.items() if isinstance(one, Identity)}


def test_members_are_read_only_by_an_ensemble(tmp_path: Path) -> None:
    score_of = {
        name: planned(tmp_path, f"selection.ensemble={name}").steps["round-1/score"]
        for name in ("none", "mean", "lower")
    }
    assert set(score_of["none"].inputs) == {"sample", "synthesize", "reward"}
    members = {"sample", "synthesize", "member:rm-a", "member:rm-b"}
    assert set(score_of["mean"].inputs) == set(score_of["lower"].inputs) == members
    told = [score_of[name].settings for name in ("none", "mean", "lower")]
    assert [(one["ensemble"], one["penalty"]) for one in told] == [
        (False, 0.0),
        (True, 0.0),
        (True, 1.0),
    ]


def test_a_penalty_that_nobody_applies_makes_nothing_stale(tmp_path: Path) -> None:
    before = identities(planned(tmp_path))
    assert "round-1/select" in before
    assert identities(planned(tmp_path, "selection.penalty=3")) == before
    lower = identities(planned(tmp_path, "selection.ensemble=lower", "selection.penalty=3"))
    changed = {name for name in before if lower[name] != before[name]}
    assert {"round-1/score", "round-1/select", "round-1/curate"} <= changed
    assert not changed & {"round-1/preferences", "round-1/rm-a", "round-1/rm", "round-1/sample"}


def test_the_embedder_is_read_only_where_a_cosine_is_limited(tmp_path: Path) -> None:
    (tmp_path / "embedder").mkdir()
    (tmp_path / "embedder" / "modules.json").write_text("[]")
    own = "pipeline.dedup.embedder=embedder"
    for limit, read in (("null", False), ("0.9", True)):
        run = planned(tmp_path, own, f"similarity.max_cosine={limit}")
        step = run.steps["round-1/preferences"]
        assert ("embedder" in step.files) == read
        assert step.settings["embedder"] == ("embedder" if read else None)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two reward models that disagree."""
    root = tmp_path_factory.mktemp("members")
    base = make_model(root / "base")
    found = {}
    for number, name in enumerate("ab"):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        folder = root / f"rm-{name}"
        model.save_pretrained(folder / "model")
        load_tokenizer(base).save_pretrained(folder / "model")
        found[f"member:rm-{name}"] = folder
    return found


def candidate(number: int, answer: str) -> Candidate:
    place = {"id": f"p{number}/0", "prompt_id": f"p{number}", "parents": (f"p{number}",)}
    fixed = {"seed": 0, "finish_reason": "stop", "num_tokens": 3, "model": "base"}
    messages = (turn("user", f"what is {number}?"), turn("assistant", answer))
    return Candidate.model_validate({**place, **fixed, "messages": messages})


@pytest.fixture
def inputs(members: dict[str, Path], tmp_path: Path) -> Inputs:
    """What the score step reads: eight responses, one that is too long, and one earlier choice."""
    rows = [candidate(n, example.messages[-1].content) for n, example in enumerate(examples(8))]
    write_rows(tmp_path / "sample/responses.jsonl", [*rows, candidate(8, "it " * 400)])
    earlier = rows[0].model_copy(update={"round": 1, "score": 9.0, "scores": {"rm-z": 3.0}})
    write_rows(tmp_path / "select/selected.jsonl", [earlier])
    (tmp_path / "out").mkdir()
    paths = {
        "sample": tmp_path / "sample",
        "chosen:1": tmp_path / "select",
        "template": TEMPLATE,
        **members,
    }
    resources = Resources(device="cpu")
    return Inputs(paths, Workspace(tmp_path), resources, tmp_path / "machine.json")


def scored(inputs: Inputs, settings: ScoreStage) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows that the step wrote, and the funnel."""
    out = Output(inputs["sample"].parent / "out", lambda done, total: None)
    score.run(inputs, settings, out)
    books = out.close()
    tables = ("responses", "earlier")
    rows = [json.loads(line) for name in tables for line in (out.path / f"{name}.jsonl").open()]
    return rows, books["funnel"][0]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_score_step_keeps_what_each_member_said(inputs: Inputs, penalty: float) -> None:
    rows, funnel = scored(inputs, ScoreStage(ensemble=True, penalty=penalty))
    assert funnel["dropped"] == {"too long to score": 1}
    assert [row["id"] for row in rows] == [*(f"p{n}/0" for n in range(8)), "round-1/p0/0"]
    dialogs = [Dialog(Candidate.model_validate(row).messages) for row in rows]
    said = {
        name: RewardScorer(inputs[f"member:{name}"] / "model", TEMPLATE).score(dialogs)
        for name in ("rm-a", "rm-b")
    }
    for name, values in said.items():
        assert [row["scores"][name] for row in rows] == pytest.approx(values, abs=1e-5)
    assert {frozenset(row["scores"]) for row in rows} == {frozenset(said)}
    expected = lower_bounds(said, penalty)
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-3)
    assert rows[0]["score"] == pytest.approx(rows[-1]["score"], abs=1e-3)


def test_without_an_ensemble_the_average_scores_alone(inputs: Inputs) -> None:
    only = replace(inputs, paths={**inputs.paths, "reward": inputs["member:rm-a"]})
    rows, _ = scored(only, ScoreStage())
    values = RewardScorer(inputs["member:rm-a"] / "model", TEMPLATE).score(
        [Dialog(Candidate.model_validate(row).messages) for row in rows]
    )
    assert [row["score"] for row in rows] == pytest.approx(values, abs=1e-5)
    assert "scores" not in rows[0]
