"""Finds what a user wrote: plans, recipes, rules, rubrics and data, always by path.

Knows where a workspace lies and the order of lookup (workspace, then the copy that ships with the
package, then entry points). Knows nothing of runs or steps.

    workspace = find_workspace(None)
    plan = load_plan(workspace, "tiny", ["dpo.beta=0.2"])
"""

import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from posttrain.errors import BadInput, PosttrainError, StepFailed
from posttrain.rows import content_id
from posttrain.settings.base import parse, with_overrides
from posttrain.settings.pipeline import Pipeline
from posttrain.settings.plan import Plan
from posttrain.settings.recipe import RecipeSettings

_PACKAGE = Path(__file__).parent
_BUNDLED = _PACKAGE / "_library"
ENTRY_POINT_GROUP = "posttrain.recipes"
_EXTENDS = re.compile(r"\bextends:")
FOLDERS = ("rounds", "recipes", "data_quality")


@dataclass(frozen=True)
class Workspace:
    """A folder with `rounds/`, and whatever of `recipes/`, `data_quality/`, `data/` it has."""

    root: Path

    def find(self, relative: str) -> Path:
        """A file or folder: an absolute path, one in the workspace, or one that ships with us.

        Raises:
            BadInput: it is in none of these.
        """
        for place in (self.root / relative, library() / relative):
            if place.exists():
                return place
        raise BadInput(f"{relative}: not found in {self.root}, nor among the shipped files")

    def runs(self, plan: str) -> Path:
        """Where a plan's steps are published."""
        return self.root / "runs" / plan

    def answers(self, plan: str, round_number: int) -> Path:
        """Where people's answers to the tasks of a round are expected."""
        return self.root / "annotations" / plan / f"round-{round_number}.jsonl"


@dataclass(frozen=True)
class RecipeFolder:
    """A recipe as it was found."""

    name: str
    folder: Path
    origin: str
    """`workspace`, `shipped` or the distribution that brought it."""


def library() -> Path:
    """The three folders that ship with the package; in a checkout, the checkout itself."""
    return _BUNDLED if _BUNDLED.is_dir() else _PACKAGE.parent


def find_workspace(explicit: Path | None) -> Workspace:
    """The given folder, else the nearest parent of the current one that holds `rounds/`.

    Raises:
        BadInput: there is none.
    """
    if explicit is not None:
        if not (explicit / "rounds").is_dir():
            raise BadInput(f"{explicit}: no workspace (a folder with rounds/); see posttrain init")
        return Workspace(explicit.resolve())
    found = nearest_workspace()
    if found is None:
        raise BadInput(
            f"{Path.cwd()}: no folder with rounds/ here or above; run posttrain init DIR first"
        )
    return found


def nearest_workspace() -> Workspace | None:
    """The nearest parent of the current folder that holds `rounds/`, or it itself."""
    here = Path.cwd()
    folders = (folder for folder in (here, *here.parents) if (folder / "rounds").is_dir())
    return next((Workspace(folder) for folder in folders), None)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        BadInput: unreadable, no YAML, or no mapping; with the line where there is one.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    return data


def plan_names(workspace: Workspace) -> list[str]:
    """Plans in the workspace's `rounds/`; those in folders below it are asked for by name."""
    return sorted(p.stem for p in (workspace.root / "rounds").glob("*.yaml"))


def variations(workspace: Workspace, name: str) -> list[str]:
    """Plans anywhere below `rounds/` that say they extend the named one, sorted by name.

    Raises:
        BadInput: a file that seems to extend a plan is no valid YAML.
    """
    rounds = workspace.root / "rounds"
    return sorted(
        path.relative_to(rounds).with_suffix("").as_posix()
        for path in rounds.rglob("*.yaml")
        if _EXTENDS.search(path.read_text(errors="replace"))
        and read_yaml(path).get("extends") == name
    )


def choose_plan(workspace: Workspace, name: str | None) -> str:
    """The named plan, or the only one.

    Raises:
        BadInput: no such plan, or several and none named.
    """
    names = plan_names(workspace)
    if name is None:
        if len(names) == 1:
            return names[0]
        raise BadInput(f"--plan is needed: {workspace.root / 'rounds'} holds {_listed(names)}")
    if not (workspace.root / "rounds" / f"{name}.yaml").is_file():
        below = [n for top in names for n in variations(workspace, top)]
        raise BadInput(f"--plan {name}: no rounds/{name}.yaml{near(name, [*names, *below])}")
    return name


def load_plan(workspace: Workspace, name: str, overrides: Iterable[str] = ()) -> Plan:
    """The plan, merged over the one it extends, with `--set` overrides applied.

    Raises:
        BadInput: every wrong key or value, a line each; plans that extend each other in a circle.
    """
    data, chain = _plan_data(workspace, name, ())
    return parse(Plan, with_overrides(data, overrides), " over ".join(chain))


def _plan_data(
    workspace: Workspace, name: str, above: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """A plan's keys with those it inherits, and the files they came from, its own first."""
    file = f"rounds/{name}.yaml"
    if name in above:
        raise BadInput(f"{file}: extends itself: {' → '.join((*above, name))}")
    if above and not (workspace.root / file).is_file():
        near_ones = near(name, plan_names(workspace))
        raise BadInput(f"rounds/{above[-1]}.yaml: extends: no plan {file}{near_ones}")
    data = read_yaml(workspace.root / file)
    if not isinstance(data.get("extends"), str):
        return data, [file]
    below, chain = _plan_data(workspace, data["extends"], (*above, name))
    return _merged({key: v for key, v in below.items() if key != "varies"}, data), [file, *chain]


def load_pipeline(workspace: Workspace, overrides: Mapping[str, Any]) -> Pipeline:
    """`data_quality/pipeline.yaml` with a plan's overrides merged over it, key by key."""
    data = read_yaml(workspace.find("data_quality/pipeline.yaml"))
    return parse(Pipeline, _merged(data, overrides), "data_quality/pipeline.yaml + plan.pipeline")


def recipe_folders(workspace: Workspace) -> dict[str, RecipeFolder]:
    """Every recipe there is, by name; the workspace's own win."""
    found: dict[str, RecipeFolder] = {}
    for root, origin in ((workspace.root, "workspace"), (library(), "shipped")):
        for folder in sorted((root / "recipes").glob("*/")):
            if (folder / "recipe.yaml").is_file():
                found.setdefault(folder.name, RecipeFolder(folder.name, folder, origin))
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name not in found:
            origin = point.dist.name if point.dist else point.value
            found[point.name] = RecipeFolder(point.name, _package_folder(point.value), origin)
    return found


def find_recipe(workspace: Workspace, name: str) -> RecipeFolder:
    """A recipe by name.

    Raises:
        BadInput: unknown, naming near matches.
    """
    folders = recipe_folders(workspace)
    if name not in folders:
        raise BadInput(f"recipe {name}: not found{near(name, folders)}; known: {_listed(folders)}")
    return folders[name]


def load_recipe_settings(
    workspace: Workspace, name: str, overrides: Mapping[str, Any]
) -> RecipeSettings:
    """recipe.yaml with a plan's overrides."""
    recipe = find_recipe(workspace, name)
    data = read_yaml(recipe.folder / "recipe.yaml")
    origin = f"recipes/{name}/recipe.yaml" + (f" + plan.recipes.{name}" if overrides else "")
    settings = parse(RecipeSettings, {**data, **overrides}, origin)
    if settings.name != name:
        raise BadInput(f"{origin}: name is {settings.name!r}, but its folder is {name!r}")
    return settings


def load_functions(path: Path) -> Mapping[str, Callable[..., Any]]:
    """The public functions that a Python file of the workspace offers, by name.

    Those of files beside it that it imports (`from .ladder import questions`) are among them. A
    file that was edited since is loaded again, and so is what it imports.

    Raises:
        BadInput: the file cannot be loaded, with the last line of what went wrong.
    """
    beside = sorted(path.parent.glob("*.py")) if path.is_file() else []
    return _load(path, tuple(file.stat().st_mtime_ns for file in beside))


@cache
def _load(path: Path, changed: tuple[int, ...]) -> Mapping[str, Callable[..., Any]]:
    name = f"workspace_{content_id(str(path))}"
    # As a package whose folder is the file's, so that it can import its neighbours.
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)]
    )
    if spec is None or spec.loader is None or not path.is_file():
        raise BadInput(f"{path}: no Python file")
    for old in [known for known in sys.modules if known.startswith(f"{name}.")]:
        del sys.modules[old]
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it is being loaded.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    # The file is somebody else's code: whatever it raises must come back with its name.
    except Exception as error:
        raise BadInput(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from error
    own = {
        key: function
        for key, function in inspect.getmembers(module, inspect.isfunction)
        if f"{function.__module__}.".startswith(f"{name}.") and not key.startswith("_")
    }
    return MappingProxyType(own)


def load_filters(files: Mapping[str, Path]) -> dict[str, Callable[..., Any]]:
    """Functions by name, each from the file that a pipeline's `filters` names beside it."""
    loaded = {name: load_functions(path).get(name) for name, path in files.items()}
    return {name: function for name, function in loaded.items() if function is not None}


@contextmanager
def blamed(where: str | Callable[[], str]) -> Iterator[None]:
    """Name the function of the workspace in whatever its code raises.

    Args:
        where: a text, or what makes it when it is needed.

    Raises:
        StepFailed: it raised something that is no error of ours.
    """
    try:
        yield
    except PosttrainError:
        raise
    # Somebody else's code: anything may come out of it.
    except Exception as error:
        place = where if isinstance(where, str) else where()
        raise StepFailed(f"{place} raised {type(error).__name__}: {error}") from error


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _package_folder(value: str) -> Path:
    spec = importlib.util.find_spec(value.partition(":")[0])
    if spec is None or spec.origin is None:
        raise BadInput(f"entry point {value}: the package cannot be found")
    return Path(spec.origin).parent


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, Mapping)
        result[key] = _merged(old, value) if both and isinstance(old, dict) else value
    return result
