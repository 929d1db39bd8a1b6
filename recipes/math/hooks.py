"""Mathematics: questions written from texts, solutions that agree, mistakes put right.

Knows how a response states its answer, and when many solutions to a question are to be believed.
Knows no model and keeps no state.

    posttrain recipes test math --model MODEL
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.hooks import Handle, PromptRequest, Rejected, Reply, Verdict, ask
from posttrain.ladders import measures, needed
from posttrain.rows import Candidate, Example, Message, Prompt, stable_seed
from posttrain.symbolic import final_answer, same_answer

from .ladder import questions

SKILLS: Mapping[str, Sequence[str]] = yaml.safe_load(
    Path(__file__).with_name("skills.yaml").read_text()
)
FENCE = re.compile(r"```(?:python)?\n(.*?)```", re.S)


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """Arithmetic of six levels (`options: {levels: [1, 2]}`); see ladder.py."""
    return questions(request)


def synthesize(prompt: Prompt, handle: Handle) -> Iterator[Example | Rejected]:
    """Question and solutions from a text, or solutions to a question (section 4.3.3)."""
    options = handle.options
    area, question, expected = "asked", prompt.prompt[-1].content, prompt.reference.get("answer")
    if "text" in prompt.reference:
        area, skill = _skill_of(prompt)
        text = str(prompt.reference["text"])
        (written,) = ask(handle, __file__, "question", text=text, area=area, skill=skill)
        if not written.finished or not written.strip():
            yield Rejected("no whole question", written)
            return
        question = written.strip()
    traces = ask(handle, __file__, "solve", n=int(options.get("traces", 8)), question=question)
    agreed, answer = _agreed([trace for trace in traces if trace.finished], expected)
    if len(agreed) < float(options.get("agreement", 0.5)) * len(traces):
        yield Rejected("solutions disagree", f"{question}: {[final_answer(t) for t in traces]}")
        return
    makes = options.get("makes", ["traces"])
    if "traces" in makes:
        yield _confirmed(question, agreed, area, handle)
    if "programs" in makes:
        yield _by_program(question, answer, area, handle)
    if "mistakes" in makes:
        wrong = [t for t in traces if t.finished and not same_answer(final_answer(t), answer)]
        if wrong:
            yield _put_right(question, wrong[0], answer, area, handle)


def _skill_of(prompt: Prompt) -> tuple[str, str]:
    """The area and skill that a text's question is to exercise; all come equally often."""
    pairs = [(area, skill) for area, skills in SKILLS.items() for skill in skills]
    return pairs[stable_seed("skill", prompt.id) % len(pairs)]


def _agreed(traces: Sequence[Reply], expected: object) -> tuple[list[Reply], str]:
    """The solutions that reach the answer most of them do, or the known one; and that answer."""
    groups: list[tuple[str, list[Reply]]] = [(str(expected), [])] if expected is not None else []
    for trace in traces:
        answer = final_answer(trace)
        group = next((own for known, own in groups if same_answer(answer, known)), None)
        if group is not None:
            group.append(trace)
        elif answer and expected is None:
            groups.append((answer, [trace]))
    # Of groups of one size the first one wins, which a seed decides.
    answer, agreed = max(groups, key=lambda one: len(one[1]), default=("", []))
    return agreed, answer


def _confirmed(
    question: str, agreed: Sequence[Reply], area: str, handle: Handle
) -> Example | Rejected:
    """The first solution that the model itself finds right, and a process reward model if any."""
    least = handle.options.get("step_score")
    for trace in agreed[: int(handle.options.get("checks", 3))]:
        (said,) = ask(
            handle,
            __file__,
            "check",
            question=question,
            solution=trace,
            choices=("yes", "no"),
            temperature=0.0,
            max_tokens=4,
        )
        if said != "yes":
            continue
        if least is not None:
            lines = [line for line in trace.splitlines() if line.strip()]
            grade = handle.judge("steps", {"question": question, "steps": lines})
            if grade is None or grade.score < int(least):
                continue
        return _example(question, trace, f"traces/{area}")
    return Rejected("no solution confirmed", question)


def _by_program(question: str, answer: str, area: str, handle: Handle) -> Example | Rejected:
    """A solution of text and code whose output is the agreed answer."""
    (said,) = ask(handle, __file__, "program", question=question)
    code = FENCE.search(said)
    if code is None:
        return Rejected("program: no code", said)
    result = handle.run_code(code.group(1))
    printed = (result.stdout.strip().splitlines() or [""])[-1]
    if not result.ok or not same_answer(printed, answer):
        return Rejected("program: another answer", f"{result.stdout}{result.stderr}"[-500:])
    told = f"{said[: code.end()].rstrip()}\n\nThe program prints {printed}.\n\n\\boxed{{{printed}}}"
    return _example(question, told, f"programs/{area}")


def _put_right(
    question: str, attempt: str, answer: str, area: str, handle: Handle
) -> Example | Rejected:
    """A wrong solution with its mistake found and corrected."""
    (said,) = ask(handle, __file__, "mistake", question=question, attempt=attempt)
    if not said.finished or not same_answer(final_answer(said), answer):
        return Rejected("mistake: not put right", said)
    asked = f"{question}\n\nHere is my attempt:\n\n{attempt}\n\nFind the mistake and put it right."
    return _example(asked, said, f"mistakes/{area}")


def revise(candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle) -> str | None:
    """A second try that knows only that the first was wrong: the answer would give it away."""
    (said,) = ask(handle, __file__, "again", before=list(candidate.messages))
    return said if said.finished else None


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict:
    """Whether the response's final answer means the same as `reference.answer`."""
    expected = str(needed(prompt, "answer", "math"))
    stated = final_answer(candidate.response)
    if not stated:
        return Verdict(False, f"no answer in the response, expected {expected}")
    if same_answer(stated, expected):
        return Verdict(True, f"the response ends with {stated}, as expected")
    return Verdict(False, f"the response ends with {stated}, expected {expected}")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Share of responses without an answer, filler, mean length, pass rate by level."""

    def no_answer(response: str, prompt: Prompt) -> bool:
        return not final_answer(response)

    return measures(candidates, prompts, {"no_answer_share": no_answer})


def _example(question: str, solution: str, how: str, **more: Any) -> Example:
    turns = (
        Message(role="user", content=question),
        Message(role="assistant", content=str(solution)),
    )
    return Example(messages=turns, capability="math", source=how, **more)
