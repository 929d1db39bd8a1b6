"""Retrieval: a list of `key=value` in the prompt, and the value of one key as the answer.

Knows no model and keeps no state: a prompt depends on the seed alone.

    list(questions(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]})))
"""

import random
from collections.abc import Iterable

from posttrain.hooks import PromptRequest
from posttrain.ladders import places
from posttrain.rows import Message, Prompt

NUM_PAIRS = {1: 2, 2: 3, 3: 4, 4: 6, 5: 9, 6: 12}
"""Level to the length of the list."""
PER_LEVEL = 20_000
KEYS = tuple("abcdefghijklmnopqrstuvwxyz")


def questions(request: PromptRequest) -> Iterable[Prompt]:
    """`request.num` different questions, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    for level, index in places(request, "long_context", dict.fromkeys(NUM_PAIRS, PER_LEVEL)):
        yield _prompt(level, index)


def num_questions(level: int) -> int:
    """How many different prompts a level has."""
    return PER_LEVEL


def _prompt(level: int, index: int) -> Prompt:
    # The first key and two values tell the index, so that no two prompts of a level are alike; a
    # step prime to their number scatters neighbours.
    rest, first = divmod(index * 7919 % (26 * 90 * 90), 26)
    rng = random.Random(f"long_context/{level}/{index}")
    others = [key for key in KEYS if key != KEYS[first]]
    keys = [KEYS[first], *rng.sample(others, NUM_PAIRS[level] - 1)]
    values = [str(10 + rest % 90), str(10 + rest // 90)]
    values += [str(rng.randrange(10, 100)) for _ in keys[2:]]
    place = rng.randrange(len(keys))
    listed = " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    return Prompt(
        prompt=(Message(role="user", content=f"{listed} {keys[place]}?"),),
        capability="long_context",
        source="long_context/prompts",
        level=level,
        reference={"answer": values[place]},
    )
