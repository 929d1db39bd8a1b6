"""Recipes with their settings and the hooks they use.

Finding recipe folders is `posttrain.workspace`'s affair.

    open_recipes(workspace, {"math": settings})["math"].hooks["verify"]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.errors import BadInput
from posttrain.hooks import HOOK_NAMES
from posttrain.settings.recipe import RecipeSettings
from posttrain.workspace import Workspace, find_recipe, load_functions


@dataclass(frozen=True)
class Recipe:
    """A capability's settings and the hooks it uses."""

    settings: RecipeSettings
    hooks: Mapping[str, Callable[..., Any]]


def open_recipes(workspace: Workspace, settings: Mapping[str, RecipeSettings]) -> dict[str, Recipe]:
    """Load the hooks that each recipe says it uses.

    Raises:
        BadInput: a hook is named but not defined, or its file cannot be loaded.
    """
    opened = {}
    for name, one in settings.items():
        path = find_recipe(workspace, name).folder / "hooks.py"
        functions = load_functions(path) if one.hooks else {}
        missing = [hook for hook in one.hooks if hook not in functions]
        if missing:
            known = [hook for hook in HOOK_NAMES if hook in functions]
            raise BadInput(f"recipe {name}: hooks.py defines no {missing[0]}(); it defines {known}")
        opened[name] = Recipe(one, {hook: functions[hook] for hook in one.hooks})
    return opened
