"""The simulated people of the tiny world: no person judged anything here, these functions did.

Knows their taste: a right answer is worth far more than a wrong one, an opening such as "sure!" is
disliked, and of two equal answers the shorter wins a little. They stand where annotators and a
judge stand in a real run, so that six rounds can be tried without waiting for anyone; what a
run shows with them says nothing about what people prefer.

    utility(prompt, "46", passed=True) > utility(prompt, "sure! 46", passed=True)
"""

import re

from posttrain.rows import Prompt

FILLER = re.compile(
    r"(?:(?:sure|certainly|of course|absolutely|great question)\b[!,.:]*\s*)+", re.I
)

RIGHT, DISLIKE, CHARACTER = 10.0, 2.0, 0.01
"""What a right answer is worth, what a filler costs, and what each character costs."""


def utility(prompt: Prompt, response: str, passed: bool) -> float:
    """How much a simulated person likes a response; only differences mean anything."""
    filler = DISLIKE if FILLER.match(response) else 0.0
    return RIGHT * passed - filler - CHARACTER * min(len(response), 200)


def edit(prompt: Prompt, response: str, passed: bool) -> str | None:
    """The response as a simulated person would rewrite it, or None to leave it as it is.

    Only the opening is cut and white space trimmed; a wrong answer is not put right.
    """
    edited = FILLER.sub("", response, count=1) if FILLER.match(response) else response
    edited = edited.strip()
    return edited if edited and edited != response else None


def grade(prompt: Prompt, response: str, passed: bool) -> int:
    """The simulated judge's grade: 3 right and plain, 2 right with a filler, 1 wrong."""
    if not passed:
        return 1
    return 2 if FILLER.match(response) else 3
