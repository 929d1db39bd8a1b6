"""Recipes at work: their settings and hooks, the handle hooks get, rows side by side, verdicts.

recipes = open_recipes(workspace, {"math": settings})
verdicts = verify_all(recipes, pairs, StepHandle(limits, seed=0), workers=2)
"""

from posttrain.recipes.handle import RowHandle, Services, StepHandle
from posttrain.recipes.opened import Recipe, open_recipes
from posttrain.recipes.verdicts import evaluate_all, verify_all

__all__ = [
    "Recipe",
    "RowHandle",
    "Services",
    "StepHandle",
    "evaluate_all",
    "open_recipes",
    "verify_all",
]
