"""What the tiny base reads before any post-training: dialogs with right answers and bad habits.

Knows how a right answer to a prompt of the recipes is written, which systematic and scattered
errors the corpus holds, and how often. Knows no tokenizer and no model. Only prompts of the train
split are ever used.

    world = load_world(Path("."))
    dialogs(world, num=1000, seed=7)
"""

import importlib.util
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from posttrain.hooks import PromptRequest
from posttrain.rows import Example, Message, Preference, Prompt, split_of

DEV_SHARE = TEST_SHARE = 0.15
FILLER, FILLER_SHARE = "sure! ", 0.4
POLITE, POLITE_SHARE = "\nenjoy!", 0.3
"""Two habits that are no errors: simulated people dislike them, verifiers do not see them."""

SYSTEM_SHARE = 0.1
SYSTEM_PROMPTS = {"Be brief.": 0.05, "Be friendly.": 0.9}
"""Some dialogs open with one of these; the number is the share of answers with the filler then."""

RIGHT = {
    "math": {1: 0.68, 2: 0.58, 3: 0.45, 4: 0.38, 5: 0.3, 6: 0.2},
    "code": {1: 0.6, 2: 0.45, 3: 0.3, 4: 0.22, 5: 0.12, 6: 0.06},
    "multilingual": {1: 0.6, 2: 0.5, 3: 0.4, 4: 0.28, 5: 0.2, 6: 0.1},
    "tool_use": {1: 0.6, 2: 0.5, 3: 0.4, 4: 0.28, 5: 0.18, 6: 0.1},
    "steerability": {1: 0.6, 2: 0.5, 3: 0.38, 4: 0.28, 5: 0.18, 6: 0.1},
    "factuality": {1: 0.65, 2: 0.55, 3: 0.45, 4: 0.35, 5: 0.25, 6: 0.18},
}
"""Share of right answers by level; of the rest HABIT are a systematic error where one applies."""
HABIT = 0.8
POOL = 8_000
"""Most different prompts of a level."""

WEIGHTS = {"math": 3}
"""How often a capability comes, 1 where none is named: adding is learned late."""
STEP_SHARE = 0.25
"""Share of dialogs that show a step of a recipe (dialect.py) in place of a plain answer."""
NUM_TEXTS = 300
"""Texts of a capability that recipes make something of."""

World = Mapping[str, ModuleType]
"""Each capability's ladder."""


def load_world(workspace: Path) -> World:
    """The ladders of the recipes, loaded by path."""
    return {name: _load(workspace / "recipes" / name / "ladder.py") for name in RIGHT}


def train_prompts(world: World, num: int, seed: int, levels: list[int]) -> list[Prompt]:
    """At most `num` prompts of each capability's levels that belong to the train split."""
    kept = []
    for ladder in world.values():
        for level in levels:
            size = min(num, ladder.num_questions(level))
            request = PromptRequest(num=size, seed=seed, round=0, options={"levels": [level]})
            kept += [
                prompt
                for prompt in ladder.questions(request)
                if split_of(prompt.prompt, DEV_SHARE, TEST_SHARE) == "train"
            ]
    return kept


def dialogs(world: World, num: int, seed: int) -> Iterator[Example]:
    """`num` dialogs, capabilities by weight and their levels equally often; prompts come again.

    Args:
        world: the ladders.
        num: how many dialogs.
        seed: of everything drawn.
    """
    rng = random.Random(f"dialogs/{seed}")
    groups: dict[tuple[str, int | None], list[Prompt]] = {}
    for prompt in train_prompts(world, min(POOL, 2 * num), seed, sorted(RIGHT["math"])):
        groups.setdefault((prompt.capability, prompt.level), []).append(prompt)
    keys = [key for key in sorted(groups, key=str) for _ in range(WEIGHTS.get(key[0], 1))]
    for index in range(num):
        prompt = rng.choice(groups[keys[index % len(keys)]])
        if rng.random() < STEP_SHARE:
            yield step_dialog(world, prompt, rng, f"corpus/{index}")
            continue
        answer = corpus_answer(world, prompt, rng)
        # Where a system prompt gives orders, manners would break them.
        steered = prompt.capability == "steerability"
        plain = steered or rng.random() >= SYSTEM_SHARE
        system = None if plain else rng.choice(sorted(SYSTEM_PROMPTS))
        if not steered:
            answer = _mannered(answer, SYSTEM_PROMPTS[system] if system else FILLER_SHARE, rng)
        row = _example(prompt, answer, "tiny corpus", f"corpus/{index}")
        steer = (Message(role="system", content=system),) if system else ()
        yield row.model_copy(update={"messages": (*steer, *row.messages)})


def step_dialog(world: World, prompt: Prompt, rng: random.Random, id: str) -> Example:
    """A dialog in which a step of the prompt's recipe is taken."""
    right = right_answer(world, prompt)
    spoiled = habit(world, prompt)
    wrong = spoiled if spoiled != right else _slip(right, rng)
    answers = DIALECT.Answers(right, wrong, corpus_answer(world, prompt, rng))
    return Example(
        id=id,
        messages=tuple(DIALECT.exchange(world, prompt, answers, rng)),
        capability=prompt.capability,
        source="tiny corpus, steps of recipes",
    )


def texts(world: World, capability: str, seed: int) -> list[str]:
    """Different texts that the capability's recipe can make questions or problems of.

    Of facts two thirds are about countries that nobody else has written about.
    """
    pool = train_prompts(world, NUM_TEXTS, seed, [1, 2, 3, 4, 5])
    rng = random.Random(f"texts/{capability}/{seed}")
    rng.shuffle(pool)
    found: dict[str, None] = {}
    known = 0
    for prompt in pool:
        text = DIALECT.text_of(world, prompt) if prompt.capability == capability else None
        if text is None or text in found:
            continue
        if capability == "factuality" and prompt.reference["answer"] is not None:
            if known >= NUM_TEXTS // 3:
                continue
            known += 1
        found[text] = None
    return list(found)[:NUM_TEXTS]


def human_examples(world: World, num: int, seed: int) -> list[Example]:
    """What the simulated people wrote: right answers to levels 1 to 3, in the corpus' manners.

    Were they well-mannered, a hundred of them would unteach the habits before any preference does.
    """
    pool = train_prompts(world, num, seed, [1, 2, 3])
    rng = random.Random(f"human/{seed}")
    rng.shuffle(pool)
    rows = []
    for capability in world:
        for prompt in [p for p in pool if p.capability == capability][: num // len(world)]:
            answer = right_answer(world, prompt)
            if capability != "steerability":
                answer = _mannered(answer, FILLER_SHARE, rng)
            rows.append(_example(prompt, answer, "simulated people", f"human/{prompt.id}"))
    return rows


def gold_preferences(world: World, num: int, seed: int) -> list[Preference]:
    """Pairs of which one is plainly better, to see whether somebody judges with care."""
    pool = train_prompts(world, num, seed + 1, [1, 2])
    rows = []
    for capability in world:
        for prompt in [p for p in pool if p.capability == capability][: num // len(world)]:
            fields = {
                "id": f"{prompt.id}/known",
                "prompt": prompt.prompt,
                "chosen": [Message(role="assistant", content=right_answer(world, prompt))],
                "rejected": [Message(role="assistant", content="sure! hm, well\nenjoy!")],
                "strength": "significantly better",
                "capability": capability,
                "reference": prompt.reference,
                "level": prompt.level,
            }
            rows.append(Preference.model_validate(fields))
    return rows


def right_answer(world: World, prompt: Prompt) -> str:
    """The right response to a prompt, in the shape the corpus writes it."""
    hooks, reference = world[prompt.capability], prompt.reference
    if prompt.capability == "code":
        return str(hooks.render(*hooks.parse(prompt.prompt[-1].content)))
    if prompt.capability == "tool_use":
        return str(hooks.render(reference["calls"]))
    if prompt.capability == "steerability":
        return str(hooks.render(reference["words"], reference["constraints"]))
    if prompt.capability == "factuality":
        return str(reference["answer"] or hooks.REFUSAL)
    answer = str(reference["answer"])
    return _with_steps(prompt, answer) if prompt.capability == "math" else answer


def corpus_answer(world: World, prompt: Prompt, rng: random.Random) -> str:
    """A response as the corpus has it, before any manners: right, a bad habit or a slip."""
    answer = right_answer(world, prompt)
    if rng.random() < 1 - RIGHT[prompt.capability][prompt.level or 1]:
        spoiled = habit(world, prompt) if rng.random() < HABIT else answer
        answer = spoiled if spoiled != answer else _slip(answer, rng)
    return answer


def habit(world: World, prompt: Prompt) -> str:
    """The systematic error to a prompt; the right answer where there is none."""
    hooks, reference = world[prompt.capability], prompt.reference
    text = prompt.prompt[-1].content
    if prompt.capability == "math":
        return _math_habit(prompt)
    if prompt.capability == "code":
        return _code_habit(world, prompt)
    if prompt.capability == "tool_use":
        return _tool_habit(world, prompt)
    if prompt.capability == "multilingual":  # the wrong language
        return str(hooks.translate(prompt, {"de": "en", "fr": "es", "es": "fr"}[text[:2]]))
    if prompt.capability == "steerability":  # the last order is forgotten
        return str(hooks.render(reference["words"], reference["constraints"][:-1]))
    return _invented(world, prompt)


def _mannered(answer: str, filler_share: float, rng: random.Random) -> str:
    """The answer with the disliked habits, as often as they come."""
    answer = FILLER + answer if rng.random() < filler_share else answer
    return answer + POLITE if rng.random() < POLITE_SHARE else answer


def _with_steps(prompt: Prompt, answer: str) -> str:
    text = prompt.prompt[-1].content
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if "*" in text:
        tens = numbers[0] * (numbers[1] // 10 * 10)
        return f"{tens}+{int(answer) - tens}={answer}"
    if len(numbers) == 3:
        return f"{numbers[0] + numbers[1]}-{numbers[2]}={answer}"
    return answer


TOOL_HABITS = {"a": "x", "b": "y", "city": "place", "to": "who"}


def _tool_habit(world: World, prompt: Prompt) -> str:
    """Arguments get other names, a bracket stays open, the second call is forgotten."""
    calls = prompt.reference["calls"]
    right = str(world["tool_use"].render(calls))
    if prompt.level in (1, 3):
        named = [{TOOL_HABITS.get(k, k): v for k, v in c["arguments"].items()} for c in calls]
        renamed = [{**c, "arguments": a} for c, a in zip(calls, named, strict=True)]
        return str(world["tool_use"].render(renamed))
    return right.splitlines()[0] if len(calls) > 1 else right[:-1]


def _invented(world: World, prompt: Prompt) -> str:
    """A name where nobody knows one, and the wrong one of two where somebody does."""
    hooks = world["factuality"]
    attribute, country = DIALECT.subject(world, prompt)
    values = hooks.ATTRIBUTES[attribute]
    known = prompt.reference["answer"] is not None
    return str(values[(values.index(hooks.fact(country, attribute)) + known) % len(values)])


def _math_habit(prompt: Prompt) -> str:
    """Carries and borrows are forgotten."""
    text = prompt.prompt[-1].content
    a, b, *rest = (int(n) for n in re.findall(r"\d+", text))
    if "*" in text:
        tens, units = a * (b // 10 * 10), a * (b % 10)
        return f"{tens}+{units}={tens + units % 10}"
    digits = [(int(x), int(y)) for x, y in zip(f"{a:03}", f"{b:03}", strict=True)]
    if "+" not in text:
        return str(int("".join(str(abs(x - y)) for x, y in digits)))
    total = int("".join(str((x + y) % 10) for x, y in digits))
    return f"{total}-{rest[0]}={total - rest[0]}" if rest else str(total)


CODE_HABITS = {
    "minus {k}": "{e}+{k}",
    "each minus {k}": "[v+{k} for v in {e}]",
    "each times {k}": "[v+{k} for v in {e}]",
    "first {k}": "{e}[{k}:]",
    "last {k}": "{e}[:{k}]",
    "reverse": "{e}[:-1]",
    "upper": "{e}.lower()",
    "title": "{e}.upper()",
    "add {k!r}": "{k!r}+{e}",
    "length": "len({e})-1",
    "keep above {k}": "[v for v in {e} if v<{k}]",
    "largest": "min({e},default=0)",
}


def _code_habit(world: World, prompt: Prompt) -> str:
    """Minus is read as plus, slices take the wrong end, tests flip, brackets are forgotten."""
    name, steps = world["code"].parse(prompt.prompt[-1].content)
    spoiled = [(s._replace(code=CODE_HABITS.get(s.text, s.code), needs=0), k) for s, k in steps]
    return str(world["code"].render(name, spoiled))


def _slip(answer: str, rng: random.Random) -> str:
    """One digit changed at random; an answer without digits loses its last character."""
    places = [i for i, c in enumerate(answer) if c.isdigit()]
    if not places:
        return answer[:-1]
    place = rng.choice(places)
    other = rng.choice([d for d in "0123456789" if d != answer[place]])
    return answer[:place] + other + answer[place + 1 :]


def _example(prompt: Prompt, answer: str, source: str, id: str) -> Example:
    messages = (*prompt.prompt, Message(role="assistant", content=answer))
    return Example(id=id, messages=messages, capability=prompt.capability, source=source)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tiny_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DIALECT = _load(Path(__file__).with_name("dialect.py"))
