"""The short dialect in which the tiny model takes the recipes' steps, and texts to take them on.

Knows how the corpus shows each step once it is rendered by the recipes' `prompts/short` templates:
a question written from a text, a check of an answer, a problem and tests written from code, a
second try. What is said is mostly right, as it would be where people help each other.

    exchange(world, prompt, answers, random.Random(0))
"""

import random
import re
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

from posttrain.rows import Message, Prompt

World = Mapping[str, ModuleType]
AGAIN = "no, again"
RIGHT_AGAIN, RIGHT_STEP = 0.8, 0.92
"""Shares of right answers to a second try, and to every other step."""
THINGS = ("pens", "cups", "nuts", "eggs", "keys", "hats")
ABROAD = ("Ha", "Yu", "Pe", "Lo", "Mi", "Ga", "Bo", "Nu", "Ta", "Ri")
"""How countries begin that no question is about."""
CODE_INPUTS: Mapping[str, tuple[object, ...]] = {
    "x": (0, 1, 7, 25),
    "s": ("Hello you", "nuu in rust", "a"),
    "a": ([3, 1, 2], [10, 20, 5], []),
}
"""What the corpus' tests call functions with."""
LONGEST = 60
"""Characters of a text of code; longer ones would not fit beside their tests."""


class Answers(NamedTuple):
    """Answers to one prompt: right, wrong, and as the corpus would have it."""

    right: str
    wrong: str
    usual: str


def exchange(world: World, prompt: Prompt, answers: Answers, rng: random.Random) -> list[Message]:
    """A dialog of one of the steps that the prompt's recipe takes."""
    kinds = {"math": (_again, _asks, _checks), "code": (_again, _sets, _tests)}
    if prompt.capability == "factuality":
        return _asks(world, prompt, answers, rng)
    return rng.choice(kinds.get(prompt.capability, (_again,)))(world, prompt, answers, rng)


def text_of(world: World, prompt: Prompt) -> str | None:
    """A text that a question can be written from; None where the capability has none."""
    asked = prompt.prompt[-1].content
    if prompt.capability == "math":
        rng = random.Random(asked)
        a, b, *rest = re.findall(r"\d+", asked)
        thing = rng.choice(THINGS)
        if "*" in asked:
            return f"{a} boxes of {b} {thing}"
        if "+" not in asked:
            return f"{a} {thing}, {b} lost"
        lost = f", {rest[0]} lost" if rest else ""
        return f"{a} {thing} and {b} {thing}{lost}"
    if prompt.capability == "code":
        ladder = world["code"]
        code = str(ladder.render(*ladder.parse(asked)))
        return code if len(code) <= LONGEST else None
    if prompt.capability == "factuality":
        ladder = world["factuality"]
        attribute, country = subject(world, prompt)
        return f"the {attribute} of {country} is {ladder.fact(country, attribute)}"
    return None


def subject(world: World, prompt: Prompt) -> tuple[str, str]:
    """The attribute and the country that a question of `factuality` asks for."""
    asked = prompt.prompt[-1].content
    attribute = next(a for a in world["factuality"].ATTRIBUTES if a in asked)
    return attribute, next(w for w in re.findall(r"[A-Z]\w+", asked))


def _again(world: World, prompt: Prompt, answers: Answers, rng: random.Random) -> list[Message]:
    """A wrong answer, and a second try."""
    told = AGAIN
    if prompt.capability == "steerability":
        told = f"not kept: {prompt.reference['constraints'][-1]}"
    second = answers.right if rng.random() < RIGHT_AGAIN else answers.usual
    return [*prompt.prompt, _said(answers.wrong), _asked(told), _said(second)]


def _asks(world: World, prompt: Prompt, answers: Answers, rng: random.Random) -> list[Message]:
    """A question written from a text."""
    text, asked = text_of(world, prompt), prompt.prompt[-1].content
    assert text is not None
    if prompt.capability == "factuality":
        # Countries and facts of no question, so that nothing is learned but to ask.
        ladder = world["factuality"]
        attribute = rng.choice(sorted(ladder.ATTRIBUTES))
        country = rng.choice(ABROAD) + rng.choice("ka lo mi nu ra so ti vu ze do pi ga".split())
        text = f"the {attribute} of {country} is {rng.choice(ladder.ATTRIBUTES[attribute])}"
        asked = f"{country}: {attribute}?"
    return [_asked(f"ask: {text}"), _said(asked)]


def _checks(world: World, prompt: Prompt, answers: Answers, rng: random.Random) -> list[Message]:
    """Whether an answer is right."""
    right = rng.random() < 0.5
    said = "yes" if right == (rng.random() < RIGHT_STEP) else "no"
    answer = answers.right if right else answers.wrong
    return [_asked(f"{prompt.prompt[-1].content} {answer} ok?"), _said(said)]


def _sets(world: World, prompt: Prompt, answers: Answers, rng: random.Random) -> list[Message]:
    """A problem set from code."""
    text = text_of(world, prompt)
    if text is None:
        return _again(world, prompt, answers, rng)
    return [_asked(f"task: {text}"), _said(prompt.prompt[-1].content)]


def _tests(world: World, prompt: Prompt, answers: Answers, rng: random.Random) -> list[Message]:
    """Two tests of a problem."""
    name, _ = world["code"].parse(prompt.prompt[-1].content)
    # The text of this function is ours alone, never a model's: safe to evaluate here.
    function = eval(answers.right)
    inputs = rng.sample(CODE_INPUTS[name], 2)
    lines = [f"f({value!r})=={function(value)!r}" for value in inputs]
    if rng.random() > RIGHT_STEP:
        lines[1] = lines[1][:-1] + rng.choice("0123456789")
    return [_asked(f"tests: {prompt.prompt[-1].content}"), _said("\n".join(lines))]


def _asked(text: str) -> Message:
    return Message(role="user", content=text)


def _said(text: str) -> Message:
    return Message(role="assistant", content=text)
