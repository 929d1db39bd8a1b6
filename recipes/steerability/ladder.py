"""Steering: a system prompt names constraints that the answer must keep, each one checkable.

Knows the constraints, how an answer keeps them and how to check them. The system prompt is no part
of a prompt's identity, so no two prompts have the same user turn. Depends on the seed alone.

    list(questions(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]})))
"""

import random
from collections.abc import Iterable, Sequence

from posttrain.hooks import PromptRequest
from posttrain.ladders import places
from posttrain.rows import Message, Prompt

WORDS = tuple(
    "red cat sun big dog new map old sea tea box pen hat ice key bus egg fox jam leg".split()
)
ENDINGS = ("ok", "yes", "end", "bye")
LADDER: dict[int, tuple[str, int, int, tuple[str, ...]]] = {
    1: ("say", 2, 1, ("upper case", "in quotes", "end with")),
    2: ("echo", 3, 1, ("upper case", "in quotes", "end with", "with commas", "no digits")),
    3: ("write", 3, 1, ("reverse order", "exactly", "no digits", "with commas")),
    4: ("print", 4, 2, ("upper case", "in quotes", "end with", "with commas", "no digits")),
    5: ("tell", 3, 2, ("reverse order", "exactly", "in quotes", "no digits", "end with")),
    6: ("give", 4, 3, ("upper case", "reverse order", "exactly", "in quotes", "end with")),
}
"""Level to its verb, the number of words, how many constraints, and which there are. The verb keeps
the user turns of two levels apart."""
PER_LEVEL = {level: 380 if num == 2 else 3000 for level, (_, num, _, _) in LADDER.items()}


def questions(request: PromptRequest) -> Iterable[Prompt]:
    """`request.num` different prompts, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    for level, index in places(request, "steerability", PER_LEVEL):
        yield _prompt(level, index)


def num_questions(level: int) -> int:
    """How many different prompts a level has."""
    return PER_LEVEL[level]


def render(words: Sequence[str], constraints: Sequence[str]) -> str:
    """A response that keeps the constraints."""
    said = [w for w in words if not ("no digits" in constraints and w.isdigit())]
    if "reverse order" in constraints:
        said.reverse()
    ending = [c.split()[-1] for c in constraints if c.startswith("end with")]
    exact = [int(c.split()[1]) for c in constraints if c.startswith("exactly")]
    if exact:
        said = said[: exact[0] - len(ending)]
    text = (", " if "with commas" in constraints else " ").join(said + ending)
    text = text.upper() if "upper case" in constraints else text
    return f'"{text}"' if "in quotes" in constraints else text


def _prompt(level: int, index: int) -> Prompt:
    verb, num, num_constraints, kinds = LADDER[level]
    rng = random.Random(f"steerability/{level}/{index}")
    words = _combination(index, num)
    chosen = sorted(rng.sample(kinds, num_constraints), key=kinds.index)
    if "no digits" in chosen:
        # One more item, not the last: no prompt is equal to another or the beginning of one.
        words.insert(rng.randrange(num), str(rng.randrange(2, 10)))
    constraints = []
    for kind in chosen:
        if kind == "end with":
            kind = f"end with {rng.choice(ENDINGS)}"
        elif kind == "exactly":
            kind = f"exactly {rng.choice((2, num))} words"
        constraints.append(kind)
    return Prompt(
        prompt=(
            Message(role="system", content="; ".join(constraints)),
            Message(role="user", content=f"{verb}: {' '.join(words)}"),
        ),
        capability="steerability",
        source="steerability/prompts",
        level=level,
        reference={"constraints": constraints, "words": words},
    )


def _combination(index: int, num: int) -> list[str]:
    """Different words for different places."""
    # A prime step walks over all ordered choices without meeting one twice.
    left, words = list(WORDS), []
    index = index * 7919 % (380 if num == 2 else 6840 if num == 3 else 116_280)
    for _ in range(num):
        index, place = divmod(index, len(left))
        words.append(left.pop(place))
    return words
