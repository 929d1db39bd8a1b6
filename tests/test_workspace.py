"""The workspace: who wins when a file is there twice, and what a lookup that fails says."""

from pathlib import Path

import pytest

from posttrain.errors import BadInput
from posttrain.workspace import (
    Workspace,
    choose_plan,
    find_recipe,
    find_workspace,
    library,
    load_functions,
    load_pipeline,
    load_plan,
    load_recipe_settings,
    plan_names,
    read_yaml,
    recipe_folders,
    variations,
)

PLAN = """
base: models/base
mix: {math: 1.0}
recipes: {math: {k: 6}}
bootstrap:
  human: [data/human.jsonl]
  tasks: &tasks [{type: hook, recipe: math, num: 10}]
rounds: [{prompts: *tasks}]
evaluation: {sources: *tasks}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "rounds").mkdir()
    return Workspace(tmp_path)


def write(workspace: Workspace, name: str, text: str) -> Path:
    path = workspace.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_nearest_workspace_above_is_found(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = workspace.root / "data" / "deep"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_workspace(None) == workspace
    assert find_workspace(workspace.root) == workspace


def test_no_workspace_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="run posttrain init DIR first"):
        find_workspace(None)
    with pytest.raises(BadInput, match="no workspace"):
        find_workspace(tmp_path)


def test_a_plan_is_named_unless_it_is_the_only_one(workspace: Workspace) -> None:
    with pytest.raises(BadInput, match="holds nothing"):
        choose_plan(workspace, None)
    write(workspace, "rounds/first.yaml", PLAN)
    assert choose_plan(workspace, None) == "first"
    write(workspace, "rounds/second.yaml", PLAN)
    assert plan_names(workspace) == ["first", "second"]
    with pytest.raises(BadInput, match=r"--plan is needed: .* holds first, second"):
        choose_plan(workspace, None)
    with pytest.raises(BadInput, match="did you mean second"):
        choose_plan(workspace, "secnd")
    assert choose_plan(workspace, "second") == "second"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("base: [1", "no valid YAML: .*line 1"),
        ("a:\n\t- b", "no valid YAML: .*line 2"),
        ("- base", "expected a mapping of keys, found list"),
        ("", "expected a mapping of keys, found NoneType"),
        ("!!python/object/apply:os.getcwd []", "no valid YAML"),
    ],
)
def test_a_plan_that_is_no_yaml_mapping_is_one_line(
    workspace: Workspace, text: str, reason: str
) -> None:
    path = write(workspace, "rounds/bad.yaml", text)
    with pytest.raises(BadInput, match=reason) as caught:
        load_plan(workspace, "bad")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_plan_in_another_encoding_cannot_be_read(workspace: Workspace) -> None:
    (workspace.root / "rounds" / "bad.yaml").write_bytes("title: Grüße".encode("latin-1"))
    with pytest.raises(BadInput, match=r"bad\.yaml: cannot be read"):
        read_yaml(workspace.root / "rounds" / "bad.yaml")


def test_defaults_then_recipe_then_plan_then_set(workspace: Workspace) -> None:
    write(workspace, "rounds/my.yaml", PLAN)
    write(workspace, "recipes/math/recipe.yaml", "{name: math, k: 3, temperature: 0.5}")
    plan = load_plan(workspace, "my", ["recipes.math.max_tokens=9", "seed=4"])
    settings = load_recipe_settings(workspace, "math", plan.recipes["math"])
    assert settings.share == 0.0
    assert settings.temperature == 0.5
    assert settings.k == 6
    assert settings.max_tokens == 9
    assert plan.seed == 4
    again = load_plan(workspace, "my", ["recipes.math.k=9", "recipes.math.k=10"])
    assert again.recipes["math"]["k"] == 10


def test_a_variation_is_merged_over_the_plan_it_extends(workspace: Workspace) -> None:
    write(workspace, "rounds/my.yaml", PLAN)
    below = load_plan(workspace, "my")
    write(
        workspace,
        "rounds/more/no-dpo.yaml",
        "{extends: my, varies: no DPO, dpo: {enabled: false}, recipes: {math: {temperature: 0.7}}}",
    )
    write(workspace, "rounds/more/again.yaml", "{extends: more/no-dpo, seed: 3}")
    write(workspace, "rounds/tiny/world.yaml", "extends: 3\nwords: [a]")
    plan = load_plan(workspace, choose_plan(workspace, "more/no-dpo"), ["sft.epochs=9"])
    assert plan.dpo.enabled is False
    assert plan.sft.epochs == 9
    assert plan.recipes["math"] == {**below.recipes["math"], "temperature": 0.7}
    assert (plan.rounds, plan.mix, plan.varies) == (below.rounds, below.mix, "no DPO")
    again = load_plan(workspace, "more/again")
    assert (again.dpo.enabled, again.seed, again.varies) == (False, 3, "")
    assert variations(workspace, "my") == ["more/no-dpo"]
    assert variations(workspace, "more/no-dpo") == ["more/again"]
    assert plan_names(workspace) == ["my"]
    with pytest.raises(BadInput, match="did you mean more/no-dpo"):
        choose_plan(workspace, "more/no-dbo")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("extends: myy", r"rounds/v\.yaml: extends: no plan rounds/myy\.yaml; did you mean my"),
        ("extends: v", "rounds/v.yaml: extends itself: v → v"),
        ("extends: w", "extends itself: v → w → v"),
        ("{extends: my, dpo: {betta: 1}}", "rounds/v.yaml over rounds/my.yaml: dpo.betta: unknown"),
        ("{extends: 3, base: b}", "extends: Input should be a valid string"),
    ],
)
def test_a_wrong_variation_is_named(workspace: Workspace, text: str, reason: str) -> None:
    write(workspace, "rounds/my.yaml", PLAN)
    write(workspace, "rounds/w.yaml", "extends: v")
    write(workspace, "rounds/v.yaml", text)
    with pytest.raises(BadInput, match=reason):
        load_plan(workspace, "v")


def test_a_variation_leaves_out_a_variant_with_null(workspace: Workspace) -> None:
    write(workspace, "rounds/my.yaml", PLAN)
    write(workspace, "rounds/one.yaml", "{extends: my, sft: {variants: {a: {}, b: null}}}")
    assert load_plan(workspace, "one").sft.variants == {"a": {}}
    write(workspace, "rounds/none.yaml", "{extends: my, sft: {variants: {a: null, b: null}}}")
    with pytest.raises(BadInput, match="variants"):
        load_plan(workspace, "none")


def test_a_wrong_override_of_a_recipe_names_the_plan_too(workspace: Workspace) -> None:
    write(workspace, "recipes/math/recipe.yaml", "{name: math, k: 3}")
    with pytest.raises(BadInput) as caught:
        load_recipe_settings(workspace, "math", {"max_token": 1.0})
    assert str(caught.value) == (
        "recipes/math/recipe.yaml + plan.recipes.math: max_token: unknown key; "
        "did you mean max_tokens?"
    )
    write(workspace, "recipes/math/recipe.yaml", "{name: math, kk: 3}")
    with pytest.raises(BadInput, match=r"recipes/math/recipe\.yaml: kk: unknown key"):
        load_recipe_settings(workspace, "math", {})


def test_a_plan_overrides_the_pipeline_key_by_key(workspace: Workspace) -> None:
    write(
        workspace,
        "data_quality/pipeline.yaml",
        "{dedup: {threshold: 0.8, block: 7}, mix: {max_repeat: 2}}",
    )
    pipeline = load_pipeline(workspace, {"dedup": {"threshold": 0.9}})
    assert pipeline.dedup.threshold == 0.9
    assert pipeline.dedup.block == 7
    assert pipeline.mix.max_repeat == 2
    assert load_pipeline(workspace, {}).dedup.threshold == 0.8
    with pytest.raises(BadInput, match=r"pipeline\.yaml \+ plan\.pipeline: dedup\.rul: unknown"):
        load_pipeline(workspace, {"dedup": {"rul": "seen"}})


def test_the_workspace_wins_over_what_ships(workspace: Workspace) -> None:
    assert find_recipe(workspace, "math").origin == "shipped"
    assert load_pipeline(workspace, {}).dedup.threshold == pytest.approx(0.95)
    write(workspace, "recipes/math/recipe.yaml", "{name: math, k: 3}")
    write(workspace, "recipes/unfinished/notes.md", "no recipe.yaml here")
    folder = find_recipe(workspace, "math")
    assert (folder.origin, folder.folder) == ("workspace", workspace.root / "recipes" / "math")
    assert "unfinished" not in recipe_folders(workspace)
    assert workspace.find("recipes/code/recipe.yaml").is_relative_to(library())


def test_an_unknown_recipe_names_near_matches(workspace: Workspace) -> None:
    with pytest.raises(BadInput, match=r"recipe maht: not found; did you mean math.*known: code"):
        find_recipe(workspace, "maht")


def test_a_missing_file_says_where_it_was_looked_for(workspace: Workspace) -> None:
    with pytest.raises(BadInput, match=r"models/base: not found in .*nor among the shipped files"):
        workspace.find("models/base")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def verify(:\n", "SyntaxError"),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("open('/no/such/file')\n", "FileNotFoundError"),
        ("raise RuntimeError('on purpose')\n", "RuntimeError: on purpose"),
    ],
)
def test_hooks_that_cannot_be_loaded_are_named(tmp_path: Path, source: str, reason: str) -> None:
    path = tmp_path / "hooks.py"
    path.write_text(source)
    with pytest.raises(BadInput, match=reason) as caught:
        load_functions(path)
    assert str(caught.value).startswith(f"{path}: cannot be loaded")
    with pytest.raises(BadInput, match="no Python file"):
        load_functions(tmp_path / "gone.py")


def test_only_a_files_own_public_functions_are_hooks(tmp_path: Path) -> None:
    path = tmp_path / "hooks.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from textwrap import dedent\n"
        "@dataclass\nclass Answer:\n    value: int\n"
        "def verify(x): return Answer(_one() + x)\n"
        "def _one(): return 1\n"
    )
    functions = load_functions(path)
    assert list(functions) == ["verify"]
    assert functions["verify"](2).value == 3


def test_a_distribution_brings_a_recipe_by_its_entry_point(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    package = write(Workspace(site), "my_chess/recipe.yaml", "{name: chess, k: 5}").parent
    write(Workspace(site), "my_chess/__init__.py", "raise RuntimeError('looked up, not imported')")
    about = "my_chess-1.0.dist-info"
    write(Workspace(site), f"{about}/METADATA", "Metadata-Version: 2.1\nName: my-chess\nVersion: 1")
    points = "[posttrain.recipes]\nchess = my_chess\nmath = my_chess\n"
    write(Workspace(site), f"{about}/entry_points.txt", points)
    monkeypatch.syspath_prepend(site)
    found = find_recipe(workspace, "chess")
    assert (found.origin, found.folder) == ("my-chess", package)
    assert load_recipe_settings(workspace, "chess", {}).k == 5
    assert find_recipe(workspace, "math").origin == "shipped"


def test_hooks_may_stand_in_files_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "hooks.py"
    path.write_text("from .rhymes import verify\nfrom .rhymes import _hidden\n")
    (tmp_path / "rhymes.py").write_text("def verify(x): return x\ndef _hidden(): ...\n")
    assert list(load_functions(path)) == ["verify"]
    assert load_functions(path)["verify"](2) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "hooks.py").write_text("from .rhymes import verify\n")
    (other / "rhymes.py").write_text("def verify(x): return -x\n")
    assert load_functions(other / "hooks.py")["verify"](2) == -2
    # An edit of what is imported counts like one of the file itself.
    (tmp_path / "rhymes.py").write_text("def verify(x): return 3 * x\n_hidden = 1\n")
    assert load_functions(path)["verify"](2) == 6
