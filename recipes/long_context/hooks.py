"""Retrieval: a list of `key=value` in the prompt, and the value of one key as the answer.

Knows no model and keeps no state: a prompt depends on the seed alone.

    list(prompts(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]}), handle))
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence

from posttrain.hooks import Handle, PromptRequest, Verdict
from posttrain.ladders import measures, needed, places
from posttrain.rows import Candidate, Message, Prompt

NUM_PAIRS = {1: 2, 2: 3, 3: 4, 4: 6, 5: 9, 6: 12}
"""Level to the length of the list."""
PER_LEVEL = 20_000
KEYS = tuple("abcdefghijklmnopqrstuvwxyz")


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """`request.num` different questions, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    for level, index in places(request, "long_context", dict.fromkeys(NUM_PAIRS, PER_LEVEL)):
        yield _prompt(level, index)


def num_prompts(level: int) -> int:
    """How many different prompts a level has."""
    return PER_LEVEL


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict:
    """Whether the last word or number of the first line is `reference["answer"]`."""
    expected = str(needed(prompt, "answer", "long_context"))
    stated = last_word(candidate.response)
    return Verdict(stated == expected, f"the response says {stated!r}, expected {expected!r}")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Share of answers that are nowhere in the prompt, filler, length, pass rate by level."""

    def invented(response: str, prompt: Prompt) -> bool:
        return last_word(response) not in re.findall(r"\w+", prompt.prompt[-1].content)

    return measures(candidates, prompts, {"invented_share": invented})


def last_word(text: str) -> str:
    """The last word of the first line that has one; empty if there is none."""
    for line in text.splitlines():
        words = re.findall(r"\w+", line)
        if words:
            return str(words[-1])
    return ""


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
