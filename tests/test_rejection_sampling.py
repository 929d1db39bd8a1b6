"""How many responses a prompt gets, from which model, and what they must pass.

pytest tests/test_rejection_sampling.py
"""

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import BadInput
from posttrain.gates import stopped_at
from posttrain.hooks import Verdict
from posttrain.languages import answered_otherwise, language
from posttrain.responses import Draw, shared_out, temperature_of, waves
from posttrain.rows import Candidate, Prompt
from posttrain.settings.base import parse
from posttrain.settings.engines import SandboxLimits
from posttrain.settings.plan import Adaptive, Sampling, Selection, SyntheticPairs
from posttrain.settings.recipe import RecipeSettings, TemperatureRange
from posttrain.settings.resources import Resources
from posttrain.settings.stages import SampleStage
from posttrain.stages import sample, select
from posttrain.steps.output import Inputs, Output
from posttrain.tables import json_lines, write_json, write_rows
from posttrain.verifying import VERDICTS, Verifier
from posttrain.workspace import Workspace
from tests.tiny_model import turn, with_other_template

ROOT = Path(__file__).parent.parent
BASE = ROOT / "rounds/tiny/base"
SYSTEMS = [("plain", "Say it."), ("short", "Be short."), ("kind", "Be kind.")]


def ask(number: int, other: int = 3) -> Prompt:
    """A sum the tiny base knows sometimes."""
    return Prompt(
        id=f"p{number}",
        prompt=(turn("user", f"{number}+{other}=?"),),
        capability="math",
        reference={"answer": str(number + other)},
        level=1,
    )


def response(text: str, finish: str = "stop", question: str = "12+3=?") -> Candidate:
    return Candidate.model_validate(
        {
            "id": "p/0",
            "prompt_id": "p",
            "messages": (turn("user", question), turn("assistant", text)),
            "seed": 0,
            "finish_reason": finish,
            "num_tokens": 4,
            "model": "base",
            "capability": "math",
        }
    )


# ---------------------------------------------------------------- which samples are asked for


@given(
    k=st.integers(1, 30),
    num_systems=st.integers(0, 3),
    first=st.integers(1, 8),
    growth=st.floats(1.25, 4),
)
def test_samples_are_the_same_in_whatever_parts_they_are_asked_for(
    k: int, num_systems: int, first: int, growth: float
) -> None:
    draw, systems = Draw(1, 2), SYSTEMS[:num_systems]

    def drawn(part: range | None) -> list[tuple[str, int, int]]:
        return [
            (str(one.system_id), one.first_index + i, one.request.seed + i)
            for one in shared_out(ask(12), k, systems, draw, 1.0, 8, part)
            for i in range(one.request.n)
        ]

    whole = drawn(None)
    assert [index for _, index, _ in whole] == list(range(k))
    parts = list(waves(Adaptive(first=first, growth=growth), k))
    assert [place for part in parts for place in part] == list(range(k))
    taken = [drawn(part) for part in parts]
    assert sorted(one for part in taken for one in part) == sorted(whole)
    for part, own in zip(parts, taken, strict=True):
        assert len(own) == len(part)
        counts = [sum(name == str(s) for name, *_ in own) for s, _ in systems or [(None, "")]]
        assert max(counts) - min(counts) <= 1


def test_a_temperature_of_a_range_is_the_prompts_own() -> None:
    spread = TemperatureRange(low=0.2, high=1.0)
    drawn = [temperature_of(ask(n), spread, Draw(0, 1)) for n in range(200)]
    assert drawn == [temperature_of(ask(n), spread, Draw(0, 1)) for n in range(200)]
    assert 0.2 <= min(drawn) < 0.25
    assert 0.95 < max(drawn) <= 1.0
    assert temperature_of(ask(1), spread, Draw(0, 2)) != drawn[1]
    assert temperature_of(ask(1), 0.7, Draw(0, 1)) == 0.7


def test_a_temperature_changes_from_round_to_round() -> None:
    recipe = parse(
        RecipeSettings,
        {
            "name": "multilingual",
            "temperature": {"low": 0.2, "high": 1},
            "temperature_in_round": {"2": 0.9, "last": 0.6},
        },
        "recipe.yaml",
    )
    found = [recipe.in_round(number, 3).temperature for number in (1, 2, 3)]
    assert found == [TemperatureRange(low=0.2, high=1), 0.9, 0.6]
    assert recipe.in_round(2, 2).temperature == 0.6


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("row", "passed", "reason"),
    [
        (response("15"), True, None),
        (response("15", finish="length"), True, "cut at the length limit"),
        (response("  "), True, "empty response"),
        (response("and so on " * 12), True, "repetitive"),
        (response("15"), False, "verifier"),
    ],
)
def test_each_gate_has_its_reason(row: Candidate, passed: bool, reason: str | None) -> None:
    recipe = RecipeSettings(name="math")
    assert stopped_at(row, ask(12), Verdict(passed), Selection(), recipe) == reason


def test_an_answer_in_another_script_or_language_is_stopped() -> None:
    german = "Wie heißt die Hauptstadt von Italien, und wie viele Menschen wohnen dort?"
    english = "The capital of Italy is Rome, and almost three million people live there."
    answer = "Die Hauptstadt von Italien heißt Rom, und dort wohnen fast drei Millionen Menschen."
    assert language(english) == "en"
    assert language("42 + 3") is None
    assert answered_otherwise(german, english, "language") == "de answered in en"
    assert answered_otherwise(german, english, "script") is None
    assert answered_otherwise(german, answer, "language") is None
    assert answered_otherwise(german, "15", "language") is None
    assert answered_otherwise("今天天气怎么样", "It is sunny.", "script") == "cjk answered in latin"
    prompt = ask(12).model_copy(update={"prompt": (turn("user", german),)})
    recipe = RecipeSettings(name="multilingual", answer_in="language")
    found = stopped_at(response(english), prompt, None, Selection(), recipe)
    assert found == "another language than the prompt's: de answered in en"


def test_a_verdict_is_remembered_until_what_it_depends_on_changes(tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "counting"
    recipe.mkdir(parents=True)
    (recipe / "recipe.yaml").write_text("name: counting\nhooks: [verify]\n")
    log = tmp_path / "calls"
    hooks = (
        "from posttrain.hooks import Verdict\n"
        "def verify(candidate, prompt, handle):\n"
        f"    with open({str(log)!r}, 'a') as file: file.write('x')\n"
        "    return Verdict(candidate.response == '15', 'LOOKED')\n"
    )
    (recipe / "hooks.py").write_text(hooks)
    settings = {"counting": RecipeSettings(name="counting", hooks=("verify",))}
    prompt = ask(12).model_copy(update={"capability": "counting"})
    pairs = [(response(text), prompt) for text in ("15", "16", "15")]

    def verify() -> list[Verdict | None]:
        folder = tmp_path / VERDICTS
        verifier = Verifier(Workspace(tmp_path), settings, SandboxLimits(), 2, folder)
        return verifier.verify(pairs)

    first = verify()
    assert [one.passed for one in first if one] == [True, False, True]
    assert len(log.read_text()) == 2
    assert verify() == first
    assert len(log.read_text()) == 2
    (recipe / "hooks.py").write_text(hooks.replace("LOOKED", "looked anew"))
    assert {one.evidence for one in verify() if one} == {"looked anew"}
    assert len(log.read_text()) == 4
    # A plan that leaves the verifier out is told nothing, whatever was remembered.
    settings["counting"] = RecipeSettings(name="counting", hooks=())
    assert verify() == [None, None, None]


def test_a_synthetic_preference_is_far_enough_whole_and_marked() -> None:
    scored = [("15", "stop", 2.0), ("15", "stop", -9.0), ("16", "stop", 0.5), ("1", "length", -8.0)]
    rows = [
        response(text, finish).model_copy(update={"id": f"p12/{n}", "score": score})
        for n, (text, finish, score) in enumerate(scored)
    ]
    (pair,) = select._pair(rows[0], rows, ask(12), SyntheticPairs(min_gap=1.5), 2)
    assert pair.parents == ("p12/0", "p12/2")
    assert (pair.chosen, pair.rejected) == (rows[0].messages[-1:], rows[2].messages[-1:])
    assert (pair.id, pair.batch) == ("round-2/p12/pair", "round-2")
    assert (pair.model_extra or {})["synthetic"] is True
    assert select._pair(rows[0], rows, ask(12), SyntheticPairs(min_gap=1.6), 2) == []


# ---------------------------------------------------------------- the step


class World:
    """A workspace with prompts, the tiny base as policy, and the sampling step."""

    def __init__(self, root: Path, prompts: list[Prompt]) -> None:
        self.root = root
        shutil.copytree(ROOT / "recipes" / "math", root / "recipes" / "math")
        write_rows(root / "prompts" / "train.jsonl", prompts)
        for name in ("policy", "other"):
            (root / name).mkdir()
            (root / name / "model").symlink_to(BASE)
            write_json(root / name / "manifest.json", {"address": f"round-0/{name}"})

    def sample(
        self, name: str, recipe: dict[str, Any] | None = None, **more: Any
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows that the step publishes, and its books."""
        own = {"k": 8, "max_tokens": 24, "hooks": ["verify"], **(recipe or {})}
        paths = {"prompts": self.root / "prompts", "policy": self.root / "policy"}
        inputs = Inputs(
            {**paths, **more.pop("paths", {})},
            Workspace(self.root),
            Resources(device="cpu"),
            self.root / "machine.json",
        )
        (self.root / name).mkdir(exist_ok=True)
        out = Output(self.root / name, lambda done, total: None)
        settings = SampleStage(
            round=1,
            seed=0,
            sampling=Sampling(shard_size=8, **more),
            recipes={"math": RecipeSettings.model_validate({"name": "math", **own})},
            selection=Selection(),
        )
        sample.run(inputs, settings, out)
        return list(json_lines(self.root / name / "responses.jsonl")), out.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("ws"), [ask(n, m) for n in range(10, 40) for m in (5,)])


def test_adaptive_k_spends_samples_only_where_none_is_good(world: World) -> None:
    fixed, books = world.sample("fixed")
    assert len(fixed) == 30 * 8
    assert books["metrics"]["responses_per_prompt"] == 8
    adaptive, told = world.sample("adaptive", adaptive=Adaptive(first=2, growth=2))
    by_id = {row["id"]: row for row in fixed}
    assert all(by_id[row["id"]] == row for row in adaptive)
    recipe = {"math": RecipeSettings(name="math", hooks=("verify",))}
    verifier = Verifier(Workspace(world.root), recipe, SandboxLimits(), 1, world.root / "own")

    def passing(rows: list[dict[str, Any]]) -> dict[str, list[bool]]:
        found: dict[str, list[bool]] = defaultdict(list)
        prompts = {f"p{n}": ask(n, 5) for n in range(10, 40)}
        candidates = [Candidate.model_validate(row) for row in rows]
        pairs = [(one, prompts[one.prompt_id]) for one in candidates]
        for one, verdict in zip(candidates, verifier.verify(pairs), strict=True):
            found[one.prompt_id].append(bool(verdict and verdict.passed))
        return found

    whole, part = passing(fixed), passing(adaptive)
    assert {len(one) for one in part.values()} == {2, 4, 8}
    for name, passed in part.items():
        # Asked again only while none passed, and until the last only if none ever did.
        assert not any(passed[: len(passed) // 2]) or len(passed) == 2
        assert any(passed) == any(whole[name])
        assert any(passed) or len(passed) == 8
    metrics = told["metrics"]
    assert metrics["tokens"] == sum(row["num_tokens"] for row in adaptive)
    accepted = sum(any(passed) for passed in part.values())
    assert metrics["tokens_per_accepted"] == pytest.approx(metrics["tokens"] / accepted)
    assert metrics["tokens"] < books["metrics"]["tokens"]


def test_recipes_sample_from_their_own_policies(world: World) -> None:
    other = {"policy:math": world.root / "other"}
    rows, _ = world.sample("best", {"k": 2}, paths=other)
    assert {row["model"] for row in rows} == {"round-0/other"}
    rows, _ = world.sample("expert", {"k": 2}, paths={**other, "expert:math": BASE})
    assert {row["model"] for row in rows} == {"expert:math"}


def test_an_expert_renders_dialogs_as_the_reward_model_does(world: World) -> None:
    expert = with_other_template(BASE, world.root / "strange")
    with pytest.raises(BadInput, match=r"share a vocabulary .* with chat\.template"):
        world.sample("strange-expert", {"k": 2}, paths={"expert:math": expert})


def test_a_killed_step_samples_no_shard_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = world.sample("whole", {"k": 2})
    generate, calls = sample.generate_in_shards, []

    def stop_after_two(engine: Any, *arguments: Any) -> Any:
        answer = engine.generate

        def counted(requests: Any) -> Any:
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(len(requests))
            return answer(requests)

        engine.generate = counted
        return generate(engine, *arguments)

    monkeypatch.setattr(sample, "generate_in_shards", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        world.sample("cut", {"k": 2})
    assert not (world.root / "cut" / "responses.jsonl").exists()
    kept = {path: path.stat().st_mtime_ns for path in (world.root / "cut").rglob("0000*.jsonl")}
    assert len(kept) == 2
    monkeypatch.undo()
    resumed, _ = world.sample("cut", {"k": 2})
    assert resumed == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
