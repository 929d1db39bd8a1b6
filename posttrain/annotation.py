"""From answers to preferences, and the simulated people who answer in tests and the tiny plan.

Knows tasks, judgments and how strengths are told from utilities. Real people's answers come as a
file of judgments; both go through `preference_of`.

    judgments = simulate(tasks, people, verify, seed=3)
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import BadInput
from posttrain.rows import (
    Candidate,
    Judgment,
    Message,
    Messages,
    Preference,
    Prompt,
    Strength,
    Task,
    stable_seed,
)
from posttrain.settings.plan import SimulatedAnnotator

Verify = Callable[[Sequence[tuple[Candidate, Prompt]]], Sequence[bool]]


@dataclass(frozen=True)
class SimulatedPeople:
    """Rules of taste with the noise people have."""

    utility: Callable[[Prompt, str, bool], float]
    """How much a person likes a response; only differences mean anything."""
    edit: Callable[[Prompt, str, bool], str | None]
    noise: SimulatedAnnotator


def people_from(
    functions: Mapping[str, Callable[..., Any]], noise: SimulatedAnnotator
) -> SimulatedPeople:
    """Simulated people from the functions of a rules file.

    Raises:
        BadInput: the file defines no `utility` or no `edit`.
    """
    for name in ("utility", "edit"):
        if name not in functions:
            raise BadInput(f"{noise.rules}: simulated people need a function {name}()")
    return SimulatedPeople(functions["utility"], functions["edit"], noise)


def task_prompt(task: Task) -> Prompt:
    """The prompt of a task as a row of its own, with what its verifier needs."""
    extra = task.model_extra or {}
    return Prompt(
        id=task.parents[0] if task.parents else task.id,
        prompt=task.prompt,
        tools=task.tools,
        capability=task.capability,
        reference=extra.get("reference", {}),
        level=extra.get("level"),
    )


def as_candidate(task: Task, side: str) -> Candidate:
    """One side of a task in the shape verifiers take."""
    response = task.a if side == "a" else task.b
    return Candidate(
        id=f"{task.id}/{side}",
        prompt_id=task.id,
        messages=(*task.prompt, *response),
        tools=task.tools,
        seed=0,
        finish_reason="stop",
        num_tokens=0,
        model=task.model_a if side == "a" else task.model_b,
        capability=task.capability,
    )


def simulate(
    tasks: Sequence[Task], people: SimulatedPeople, verify: Verify, seed: int
) -> list[Judgment]:
    """Answers of simulated people; each depends on the task and the seed alone."""
    pairs = [(as_candidate(t, side), task_prompt(t)) for t in tasks for side in ("a", "b")]
    passed = verify(pairs)
    return [
        _judge(task, people, (passed[2 * i], passed[2 * i + 1]), seed)
        for i, task in enumerate(tasks)
    ]


def _judge(task: Task, people: SimulatedPeople, passed: tuple[bool, bool], seed: int) -> Judgment:
    prompt, rng = task_prompt(task), random.Random(stable_seed(seed, task.id))
    texts = task.a[-1].content, task.b[-1].content
    likes = [people.utility(prompt, text, ok) for text, ok in zip(texts, passed, strict=True)]
    gap = likes[0] - likes[1]
    base = {"task": task.id, "annotator": "simulated", "parents": (task.id,)}
    if texts[0] == texts[1] or gap == 0:
        return Judgment(**base, choice="tie")
    strength = list(Strength)[sum(abs(gap) >= limit for limit in people.noise.strengths)]
    best = 0 if gap > 0 else 1
    if rng.random() < _flip_share(people.noise, strength):
        return Judgment(**base, choice="ba"[best], strength=strength)
    edited: Messages | None = None
    better = people.edit(prompt, texts[best], passed[best])
    if better is not None and rng.random() < people.noise.edit:
        edited = (Message(role="assistant", content=better),)
    return Judgment(**base, choice="ab"[best], strength=strength, edited=edited)


def _flip_share(noise: SimulatedAnnotator, strength: Strength) -> float:
    return noise.flip.get(strength, 0.0) if isinstance(noise.flip, dict) else noise.flip


def preference_of(task: Task, judgment: Judgment) -> Preference | None:
    """The preference a judgment states; None for ties and skips.

    Raises:
        ValueError: the ranking is none, e.g. an edit equal to the rejected response.
    """
    if judgment.choice in ("tie", "skip") or judgment.strength is None:
        return None
    chosen, rejected = (task.a, task.b) if judgment.choice == "a" else (task.b, task.a)
    fields = {
        "parents": (judgment.id, task.id, *task.parents),
        "prompt": task.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "edited": judgment.edited,
        "tools": task.tools,
        "strength": judgment.strength,
        "capability": task.capability,
        "batch": task.batch,
    }
    return Preference.model_validate(with_checked_edit(fields))


def with_checked_edit(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preference; `edited` is None where the edit equals the chosen response.

    White space around a turn makes no edit. Values that are no messages are left for
    `Preference` to refuse.

    Raises:
        ValueError: the edit is empty, or equals the rejected response.
    """
    edited = _bare(fields.get("edited"))
    if edited is None:
        return {**fields, "edited": None}
    if not edited or (isinstance(edited, list) and not any(_says(turn) for turn in edited)):
        raise ValueError("edited is empty")
    if edited == _bare(fields.get("rejected")):
        raise ValueError("edited equals rejected")
    return {**fields, "edited": None if edited == _bare(fields.get("chosen")) else fields["edited"]}


def _bare(value: Any) -> Any:
    """Messages as plain values, without white space around them and without unset fields."""
    if isinstance(value, Message):
        value = value.to_json()
    if isinstance(value, Mapping):
        return {k: _bare(one) for k, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_bare(one) for one in value]
    return value.strip() if isinstance(value, str) else value


def _says(turn: Any) -> bool:
    return not isinstance(turn, Mapping) or bool(turn.get("content") or turn.get("tool_calls"))
