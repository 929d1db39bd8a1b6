"""What recipes with a ladder of difficulty share: places on its rungs, and measures by rung.

Knows levels and how prompts spread over them. Knows no capability: a recipe says how many prompts
a level has and makes the one at a place.

    for level, index in places(request, "math", {1: 900, 2: 4050}): ...
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from posttrain.errors import BadInput
from posttrain.hooks import PromptRequest
from posttrain.rows import Candidate, Prompt

FILLER = re.compile(r"(sure|certainly|of course|absolutely|great question)\b[!,.:]*\s*", re.I)


def places(
    request: PromptRequest, name: str, sizes: Mapping[int, int]
) -> Iterator[tuple[int, int]]:
    """`request.num` different (level, index), spread evenly over `options["levels"]`.

    Args:
        request: what the plan asks for.
        name: of the recipe, for messages and seeds.
        sizes: level to the number of different prompts it has.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    options = request.options
    levels = options.get("levels", list(sizes))
    known = isinstance(levels, list | tuple) and levels and not set(levels) - set(sizes)
    if set(options) - {"levels"} or not known:
        raise BadInput(
            f"{name} prompts take options {{levels: some of {list(sizes)}}}, got {dict(options)}"
        )
    rungs = sorted(set(levels))
    for place, level in enumerate(rungs):
        num = request.num // len(rungs) + (place < request.num % len(rungs))
        size = sizes[level]
        if num > size:
            raise BadInput(
                f"{name} level {level} has {size} different prompts, {num} were asked for: "
                "lower num or name more levels"
            )
        for index in random.Random(f"{name}/{level}/{request.seed}").sample(range(size), num):
            yield level, index


def measures(
    candidates: Sequence[Candidate],
    prompts: Sequence[Prompt],
    shares: Mapping[str, Callable[[str, Prompt], bool]],
) -> dict[str, float]:
    """Shares of responses that are so and so, mean length, and pass rate by level.

    Args:
        candidates: responses with their verdicts.
        prompts: the candidates' prompts, in any order.
        shares: name of a measure to the test that a response meets or not.
    """
    if not candidates:
        return {}
    by_id = {prompt.id: prompt for prompt in prompts}
    pairs = [(candidate, by_id[candidate.prompt_id]) for candidate in candidates]
    result = {
        name: sum(test(c.response, p) for c, p in pairs) / len(pairs)
        for name, test in shares.items()
    }
    fillers = sum(FILLER.match(candidate.response) is not None for candidate, _ in pairs)
    result["filler_share"] = fillers / len(pairs)
    result["mean_characters"] = sum(len(c.response) for c, _ in pairs) / len(pairs)
    verdicts: dict[int, list[bool]] = {}
    for candidate, prompt in pairs:
        if prompt.level is not None and candidate.passed is not None:
            verdicts.setdefault(prompt.level, []).append(candidate.passed)
    for level, passed in sorted(verdicts.items()):
        result[f"pass_rate_level_{level}"] = sum(passed) / len(passed)
    return result


def needed(prompt: Prompt, key: str, recipe: str) -> object:
    """A value of the prompt's reference that the recipe's verifier cannot do without.

    Raises:
        BadInput: the row has none.
    """
    if key not in prompt.reference:
        raise BadInput(
            f"prompt {prompt.id}: the verifier of recipe {recipe} needs reference.{key}, which "
            f"this row lacks; add it, or leave verify out: recipes: {{{recipe}: {{hooks: []}}}}"
        )
    return prompt.reference[key]
