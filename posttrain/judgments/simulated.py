"""The simulated people who judge in tests and in the tiny plan.

Knows tasks and how strengths are told from utilities. What judgments state, `preferences` says,
whoever made them.

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
    Prompt,
    Strength,
    Task,
    stable_seed,
)
from posttrain.settings.annotation import SimulatedAnnotator

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
    """Answers of simulated people; each depends on the task, the person and the seed alone.

    A task is judged by as many of them as it asks for, one with a known answer by all.
    """
    pairs = [(as_candidate(t, side), task_prompt(t)) for t in tasks for side in ("a", "b")]
    passed = verify(pairs)
    return [
        _judge(task, people, (passed[2 * i], passed[2 * i + 1]), seed, turn)
        for i, task in enumerate(tasks)
        for turn in range(_num_judges(task, people.noise.people))
    ]


def _num_judges(task: Task, num_people: int) -> int:
    return num_people if task.gold else min(task.times or 1, num_people)


def _name(task: Task, num_people: int, turn: int) -> str:
    """Who has the task's turn: the people share the tasks evenly."""
    if num_people == 1:
        return "simulated"
    return f"simulated-{(stable_seed('who', task.id) + turn) % num_people + 1}"


def _judge(
    task: Task, people: SimulatedPeople, passed: tuple[bool, bool], seed: int, turn: int
) -> Judgment:
    prompt = task_prompt(task)
    rng = random.Random(stable_seed(seed, task.id, *([turn] if turn else [])))
    texts = task.a[-1].content, task.b[-1].content
    likes = [people.utility(prompt, text, ok) for text, ok in zip(texts, passed, strict=True)]
    gap = likes[0] - likes[1]
    name = _name(task, people.noise.people, turn)
    base = {"task": task.id, "annotator": name, "parents": (task.id,)}
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
