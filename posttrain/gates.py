"""What a sampled response must pass before a reward model chooses among those that do (4.2.2).

Knows one response with its prompt and verdict; knows no group, no score and no engine.

    reason = stopped_at(candidate, prompt, verdict, plan.selection, recipe)
"""

from posttrain.hooks import Verdict
from posttrain.languages import answered_otherwise
from posttrain.responses import repetition
from posttrain.rows import Candidate, Prompt
from posttrain.settings.plan import Selection
from posttrain.settings.recipe import RecipeSettings


def stopped_at(
    row: Candidate,
    prompt: Prompt,
    verdict: Verdict | None,
    gates: Selection,
    recipe: RecipeSettings,
) -> str | None:
    """Why a response goes no further, or None: the first gate that it does not pass.

    Texts after a colon are details; what stands before it is counted.
    """
    if gates.require_stop and row.finish_reason != "stop":
        return "cut at the length limit"
    if not row.response.strip():
        return "empty response"
    if repetition(row.response) > gates.max_repetition:
        return "repetitive"
    asked = "\n".join(turn.content for turn in prompt.prompt if turn.role == "user")
    otherwise = answered_otherwise(asked, row.response, recipe.answer_in, recipe.languages)
    if otherwise:
        return f"another {recipe.answer_in} than the prompt's: {otherwise}"
    if gates.verify and verdict is not None and not verdict.passed:
        return "verifier"
    return None
