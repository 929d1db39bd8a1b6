"""Settings: a wrong key or value is one line with file, path and what is allowed."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import BadInput
from posttrain.settings.base import parse, with_overrides
from posttrain.settings.pipeline import Pipeline
from posttrain.settings.plan import Plan
from posttrain.settings.recipe import RecipeSettings
from posttrain.settings.sources import FileSource
from posttrain.settings.stages import PreferencesStage
from posttrain.settings.training import RewardSettings, SftSettings

ROUNDS = Path(__file__).parent.parent / "rounds"
PLAN = """
base: models/base
mix: {math: 0.5, code: 0.5}
bootstrap:
  human: [data/human.jsonl]
  tasks: &tasks [{type: hook, recipe: math, num: 10}]
rounds:
  - {prompts: [{path: data/prompts.jsonl}], tasks: *tasks}
  - {prompts: [{type: hook, recipe: math, num: 20}], tasks: *tasks}
  - {prompts: [{type: hook, recipe: math, num: 20}], preferences: [data/pairs.jsonl]}
evaluation: {sources: [{type: hook, recipe: math, num: 30}]}
"""
KEYS = st.text("abc", min_size=1, max_size=2)
SCALARS = st.integers() | st.booleans() | st.none() | st.text("xyz", min_size=1)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=6,
    ),
)


def plan(*overrides: str) -> Plan:
    return parse(Plan, with_overrides(yaml.safe_load(PLAN), overrides), "rounds/my.yaml")


def complaint(*overrides: str) -> str:
    with pytest.raises(BadInput) as caught:
        plan(*overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("dpo.betta=0.2", "rounds/my.yaml: dpo.betta: unknown key; did you mean beta?"),
        ("bse=x", "rounds/my.yaml: bse: unknown key; did you mean base"),
        ("qqq=x", "rounds/my.yaml: qqq: unknown key"),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (got -1)"),
        ("sft.epochs=many", "sft.epochs: Input should be a valid number"),
        ("title=no", "rounds/my.yaml: title: Input should be a valid string (got False)"),
        ("base=12:30", "rounds/my.yaml: base: Input should be a valid string (got 750)"),
        ("min_strength=much better", "min_strength: Input should be 'marginally better'"),
        ("mix.math=0.4", "rounds/my.yaml: mix: shares sum to 0.9000, expected 1"),
        ("mix={}", "mix: Dictionary should have at least 1 item"),
        ("recipes={chess: {k: 4}}", "recipes.chess: not in mix, which has ['code', 'math']"),
        ("splits={dev: 0.5, test: 0.5}", "splits: dev and test together leave nothing"),
        ("reward.variants.b.seed=4", "reward variants share the seed of their random head"),
        ("sft.variants.b.lr=4", "variants.b.lr: unknown key; known: ['batch_size',"),
        ("sft.variants.b.learning_rate=0", "learning_rate: Input should be greater than 0 (got 0)"),
        ("sft.variants={A-1: {}}", "sft.variants.A-1"),
        ("dpo.average.method=weighted", "average.weights: expected one weight for each of"),
        ("dpo.variants={a: {}}", "tasks.models: 'variants' needs at least two dpo.variants"),
        ("sampling.engine={type: vlm}", "does not match any of the expected tags: 'transformers'"),
        ("rounds.0.tasks=[]", "rounds.0.tasks: the next round lists no preferences"),
        ("bootstrap.tasks=[]", "bootstrap.tasks: the next round lists no preferences"),
        ("rounds=[]", "rounds: Tuple should have at least 1 item"),
        ("rounds.0.prompts.0={type: folder}", "Input tag 'folder'"),
        ("rounds.1.prompts.0.num=0", "rounds.1.prompts.0.hook.num: Input should be greater than"),
        ("resources.reject_share=2", "resources.reject_share: Input should be less than or equal"),
        (
            "max_similarity=0.9",
            "rounds/my.yaml: max_similarity: unknown key; did you mean similarity",
        ),
        ("similarity.max_edit=1.5", "similarity.max_edit: Input should be less than or equal to 1"),
        (
            "selection.ensemble=worst",
            "selection.ensemble: Input should be 'none', 'mean' or 'lower'",
        ),
        ("selection.penalty=-1", "selection.penalty: Input should be greater than or equal to 0"),
        ("annotator={type: simulated}", "annotator.simulated.rules: this key is required"),
        ("sampling.engine={type: openai}", "sampling.engine.openai.url: this key is required"),
        (
            "sampling.engine={type: openai, url: 'localhost:8000/v1'}",
            "sampling.engine.openai.url: String should match pattern",
        ),
        (
            "sampling.engine={type: openai, url: 'http://h/v1', reload: 1, trust_served_model: 1}",
            "sampling.engine.openai: reload and trust_served_model exclude each other",
        ),
    ],
)
def test_a_wrong_key_or_value_is_one_line(override: str, line: str) -> None:
    told = complaint(override)
    assert line in told
    assert told.startswith("rounds/my.yaml: ")
    assert "\n" not in told


def test_an_ensemble_has_two_members_and_more() -> None:
    told = complaint("selection.ensemble=mean", "reward.variants={a: {}}")
    assert told == ("rounds/my.yaml: selection.ensemble: 'mean' needs at least two reward.variants")


def test_a_layout_that_keeps_keys_is_not_combined_with_checkpointing() -> None:
    for layout in ("reward.layout=prefix", "reward.variants={a: {layout: prefix}, b: {}}"):
        told = complaint(layout, "resources.gradient_checkpointing=true")
        assert told.startswith("rounds/my.yaml: reward.layout: prefix keeps the prompt's keys")


def test_every_wrong_key_has_its_line() -> None:
    told = complaint("dpo.betta=0.2", "seed=x", "keep.polcy=3").splitlines()
    assert len(told) == 3
    assert all(line.startswith("rounds/my.yaml: ") for line in told)


def test_an_exponent_without_a_dot_is_a_number() -> None:
    """YAML reads `1e-6` as text; nothing downstream may see text where a number belongs."""
    one = plan("sft.learning_rate=1e-6", "sft.variants.b.learning_rate=2e-6", "dpo.beta=1e-1")
    assert yaml.safe_load("1e-6") == "1e-6"
    assert one.sft.learning_rate == 1e-6
    assert one.sft.variant("b").learning_rate == 2e-6
    assert one.dpo.model_dump(mode="json")["beta"] == 0.1


def test_a_variant_is_the_settings_with_its_differences() -> None:
    settings = SftSettings(epochs=3, variants={"a": {}, "b": {"data_seed": 7, "epochs": 1}})
    a, b = settings.variant("a"), settings.variant("b")
    assert (a.epochs, a.data_seed) == (3, 0)
    assert (b.epochs, b.data_seed) == (1, 7)
    assert list(b.variants) == ["b"]


def test_reward_variants_have_one_head() -> None:
    with pytest.raises(BadInput, match="share the seed"):
        parse(RewardSettings, {"variants": {"a": {}, "b": {"seed": 1}}}, "x")
    rows = parse(RewardSettings, {"variants": {"a": {}, "b": {"data_seed": 1}}}, "x")
    assert rows.variant("b").seed == rows.seed


def test_overrides_reach_into_lists_and_make_mappings() -> None:
    one = plan(
        "rounds.1.prompts.0.num=5",
        "rounds.0.prompts.0.path=data/a=b.jsonl",
        "recipes.math.k=4",
        "title=",
    )
    assert one.rounds[1].prompts[0].model_dump()["num"] == 5
    assert one.rounds[0].prompts[0] == FileSource(path="data/a=b.jsonl")
    assert one.recipes == {"math": {"k": 4}}
    assert one.title == ""


def test_an_override_changes_one_use_of_an_anchor() -> None:
    one = plan("rounds.1.tasks.0.num=5")
    numbers = [tasks[0].model_dump()["num"] for tasks in (one.bootstrap.tasks, one.rounds[0].tasks)]
    assert numbers == [10, 10]
    assert one.rounds[1].tasks[0].model_dump()["num"] == 5


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("dpo.beta", "expected key.path=value"),
        ("=0.2", "expected key.path=value"),
        ("seed.x=1", "seed is 0, which has no keys below it"),
        ("bootstrap.human.0.x=1", "0 is 'data/human.jsonl', which has no keys below it"),
        ("bootstrap.human.0.x.y=1", "0 is 'data/human.jsonl', which has no keys below it"),
        ("rounds.9.human=[]", "9 is no index of a list of 3"),
        ("rounds.x.human=[]", "x is no index of a list of 3"),
        ("rounds.-1.human=[]", "-1 is no index of a list of 3"),
        ("title=[1", "the value is no valid YAML"),
        ("title=a: b: c", "the value is no valid YAML"),
    ],
)
def test_an_override_that_fits_nowhere_is_one_line(override: str, reason: str) -> None:
    data = {**yaml.safe_load(PLAN), "seed": 0}
    with pytest.raises(BadInput) as caught:
        with_overrides(data, [override])
    assert str(caught.value).startswith(f"--set {override}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def _paths(value: Any, at: str = "") -> list[str]:
    """Every path in a tree."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    found = [f"{at}{key}" for key, _ in pairs]
    return found + [path for key, child in pairs for path in _paths(child, f"{at}{key}.")]


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


@given(TREES, st.data())
def test_an_override_sets_one_path_and_leaves_the_rest(tree: dict[str, Any], data: Any) -> None:
    before = deepcopy(tree)
    paths = _paths(tree)
    assert with_overrides(tree, []) == before
    if not paths:
        return
    path = data.draw(st.sampled_from(paths))
    after = with_overrides(tree, [f"{path}=replaced"])
    assert tree == before
    assert _at(after, path) == "replaced"
    untouched = [p for p in paths if not (p + ".").startswith(path + ".")]
    for other in untouched:
        if not path.startswith(other + "."):
            assert _at(after, other) == _at(before, other)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        plan().dpo.beta = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"order": ["clean", "mix"]}, "decontaminate is missing"),
        ({"order": ["decontaminate", "mix", "clean"]}, "mix comes last"),
        ({"order": ["decontaminate", "clean", "clean", "mix"]}, "a step is listed twice"),
        (
            {"order": ["semantic_dedup", "quality", "decontaminate", "mix"]},
            "semantic_dedup sorts by quality",
        ),
        ({"quality": {"keep": "judge", "use_judge": False}}, "'judge' needs use_judge"),
        ({"difficulty": {"level_bounds": [4, 2]}}, "expected [easy, medium] with easy < medium"),
        ({"dedup": {"treshold": 0.9}}, "dedup.treshold: unknown key; did you mean threshold?"),
        ({"dedup": {"threshold": 1.5}}, "dedup.threshold: Input should be less than or equal to 1"),
        ({"clean": {"rules": ["drop_empty", "drop_empty"]}}, "a rule is listed twice"),
    ],
)
def test_a_pipeline_that_makes_no_sense_is_one_line(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(Pipeline, data, "pipeline.yaml")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "llama3"])
def test_the_shipped_plans_parse(name: str) -> None:
    shipped = parse(Plan, yaml.safe_load((ROUNDS / f"{name}.yaml").read_text()), name)
    assert len(shipped.rounds) == 6
    assert sum(shipped.mix.values()) == pytest.approx(1, abs=0.005)


def test_every_field_of_a_plan_that_a_user_meets_has_its_type_in_the_schema() -> None:
    schema = Plan.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"base", "mix", "bootstrap", "rounds", "evaluation"}
    assert "hash" in schema["$defs"]["Splits"]["description"]


def test_a_recipe_refuses_an_unknown_hook() -> None:
    with pytest.raises(BadInput, match=r"hooks\.0: Input should be 'prompts', 'verify'"):
        parse(RecipeSettings, {"name": "chess", "hooks": ["play"]}, "recipes/chess/recipe.yaml")


def test_a_choice_without_its_type_says_so() -> None:
    with pytest.raises(BadInput, match=r"x\.yaml: annotator\.type: this key is required"):
        parse(PreferencesStage, {"annotator": {"min_answered": 0.5}}, "x.yaml")
