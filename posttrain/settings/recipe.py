"""What a `recipe.yaml` may say. Order: these defaults < recipe.yaml < plan < `--set`.

Knows every key, its bounds and its default; hooks are code, and found by name.

    load_recipe_settings(workspace, "math", {"k": 16})
"""

from typing import Annotated, Literal

from pydantic import Field

from posttrain.settings.base import Settings


class RecipeSettings(Settings):
    """How one capability is sampled, checked and mixed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    summary: str = ""
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Default share of the SFT mix; a plan's `mix` owns the real one."""
    k: Annotated[int, Field(ge=0)] = 10
    """Samples per prompt (10 to 30 in the paper); 0 turns rejection sampling off."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest response."""
    policy: Literal["latest"] = "latest"
    """Which model to sample from: the latest promoted policy."""
    system_prompts: tuple[str, ...] = ()
    """Templates in `prompts/` (without `.jinja`) that steer; they take turns over a prompt's K
    samples and are left out of the training row."""
    hooks: tuple[
        Literal["prompts", "verify", "revise", "synthesize", "judge", "evaluate"], ...
    ] = ()
    """Functions of `hooks.py` to use."""
