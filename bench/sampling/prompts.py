"""Prompts of the tiny world for measurements: every recipe of the tiny plan, levels side by side.

prompts = tiny_prompts(500, seed=0)
"""

from pathlib import Path

from posttrain.hooks import PromptRequest
from posttrain.recipes import StepHandle, open_recipes
from posttrain.rows import Prompt, content_id
from posttrain.settings.plan import Plan
from posttrain.settings.recipe import RecipeSettings
from posttrain.workspace import Workspace, load_plan, load_recipe_settings

ROOT = Path(__file__).parent.parent.parent
BASE = ROOT / "rounds" / "tiny" / "base"


def tiny_plan() -> tuple[Plan, dict[str, RecipeSettings]]:
    """The tiny plan, and its recipes with what the plan says of them."""
    workspace = Workspace(ROOT)
    plan = load_plan(workspace, "tiny")
    recipes = {name: load_recipe_settings(workspace, name, plan.recipes[name]) for name in plan.mix}
    return plan, recipes


def tiny_prompts(num: int, seed: int) -> list[Prompt]:
    """About as many prompts of each recipe, one in six of each level; ids are their content's."""
    plan, settings = tiny_plan()
    recipes = open_recipes(Workspace(ROOT), settings)
    handle = StepHandle(plan.resources.sandbox, seed)
    each = -(-num // len(recipes))
    found = {}
    for name, recipe in recipes.items():
        options = {"levels": [1, 2, 3, 4, 5, 6]}
        for row in recipe.hooks["prompts"](PromptRequest(each, seed, 1, options), handle):
            prompt = row.model_copy(update={"id": content_id([name, row.to_json()])})
            prompt = prompt.model_copy(update={"capability": name})
            found[prompt.id] = prompt
    return sorted(found.values(), key=lambda prompt: prompt.id)[:num]
