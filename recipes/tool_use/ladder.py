"""Tool calls as JSON, one object a line: single, parallel and nested ones.

Knows a handful of tools, the requests that call them, and how to read calls from a response.
Calls no tool. A prompt depends on the seed alone.

    list(questions(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]})))
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from posttrain.hooks import PromptRequest
from posttrain.ladders import places
from posttrain.rows import Message, Prompt

CITIES = tuple("Rome Oslo Bonn Lima Cairo Delhi Paris Seoul Tokyo Quito".split())
PEOPLE = tuple("Ana Ben Eva Ira Leo Mia Noa Tom".split())
THINGS = tuple("milk bread rent call train keys lunch paper tea bus".split())
HOURS = tuple(range(1, 13))
SMALL = tuple(range(2, 20))

Call = dict[str, Any]


class Asked(NamedTuple):
    """A request in words and the calls that answer it."""

    text: str
    calls: list[Call]


def arithmetic(name: str, a: int, b: int, joint: str = "and") -> Asked:
    """`add 3 and 4`."""
    return Asked(f"{name} {a} {joint} {b}", [call(name, a=a, b=b)])


def forecast(name: str, city: str, hour: int, joint: str = "in") -> Asked:
    """`weather in Rome at 7`."""
    return Asked(f"{name} {joint} {city} at {hour}", [call(name, city=city, hour=hour)])


def remind(who: str, what: str, hour: int) -> Asked:
    """`remind Ana of milk at 7`."""
    return Asked(
        f"remind {who} of {what} at {hour}", [call("remind", to=who, text=what, hour=hour)]
    )


def parallel(first: Asked, second: Asked) -> Asked:
    """Two requests, two calls."""
    return Asked(f"{first.text}; {second.text}", first.calls + second.calls)


def nested(outer: str, a: int, inner: str, b: int, c: int, joint: str) -> Asked:
    """`add 3 to the mul of 2 and 5`: a call as the argument of a call."""
    text = f"{outer} {a} {joint} the {inner} of {b} and {c}"
    return Asked(text, [call(outer, a=a, b=call(inner, a=b, b=c))])


def call(name: str, **arguments: object) -> Call:
    """A call as it stands in JSON."""
    return {"name": name, "arguments": arguments}


SUMS, SKIES = ("add", "mul", "sub"), ("weather", "wind")
LADDER: dict[int, tuple[tuple[Any, ...], ...]] = {
    1: (SUMS, SMALL, SMALL),
    2: (SKIES, CITIES, HOURS),
    3: (PEOPLE, THINGS, HOURS),
    4: (SUMS, SMALL, SMALL, SUMS, SMALL, SMALL),
    5: (SUMS, SMALL, SUMS, SMALL, SMALL),
    6: (SKIES, CITIES, HOURS, SUMS, SMALL, SUMS, SMALL, SMALL),
}
"""Level to what is chosen. 4 and 6 are parallel calls, 5 and the second of 6 nested ones."""


def asked(level: int, p: Sequence[Any]) -> Asked:
    """The request of a level made of what was picked."""
    if level == 1:
        return arithmetic(p[0], p[1], p[2])
    if level == 2:
        return forecast(p[0], p[1], p[2])
    if level == 3:
        return remind(p[0], p[1], p[2])
    if level == 4:
        first = arithmetic(p[0], p[1], p[2], "with")
        return parallel(first, arithmetic(p[3], p[4], p[5], "with"))
    if level == 5:
        return nested(p[0], p[1], p[2], p[3], p[4], "to")
    first = forecast(p[0], p[1], p[2], "of")
    return parallel(first, nested(p[3], p[4], p[5], p[6], p[7], "into"))


def questions(request: PromptRequest) -> Iterable[Prompt]:
    """`request.num` different requests, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    sizes = {level: num_questions(level) for level in LADDER}
    for level, index in places(request, "tool_use", sizes):
        picked = []
        for choices in LADDER[level]:
            index, place = divmod(index, len(choices))
            picked.append(choices[place])
        yield _prompt(asked(level, picked), level)


def num_questions(level: int) -> int:
    """How many different prompts a level has."""
    size = 1
    for choices in LADDER[level]:
        size *= len(choices)
    return size


def render(calls: Sequence[Call]) -> str:
    """Calls as a response writes them."""
    return "\n".join(json.dumps(one) for one in calls)


def _prompt(request: Asked, level: int) -> Prompt:
    return Prompt(
        prompt=(Message(role="user", content=request.text),),
        capability="tool_use",
        source="tool_use/prompts",
        level=level,
        reference={"calls": request.calls},
    )
