"""Steering: system prompts whose constraints an answer must keep, each one checked.

Knows how a system prompt comes about, how an answer is checked and tried again. What a constraint
means stands in constraints.py.

    posttrain recipes test steerability --model MODEL
"""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from posttrain.hooks import Handle, PromptRequest, Rejected, Verdict, ask
from posttrain.ladders import measures, needed
from posttrain.rows import Candidate, Example, Message, Prompt

from .constraints import keeps
from .ladder import questions


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """Words to say under constraints, of six levels (`options: {levels: [1, 2]}`)."""
    return questions(request)


def synthesize(prompt: Prompt, handle: Handle) -> Iterator[Example | Rejected]:
    """A question under a system prompt that the model writes, and an answer that keeps to it."""
    if prompt.prompt[0].role == "system":
        yield Rejected("has a system prompt already", prompt.prompt[0].content)
        return
    options = handle.options
    rng = random.Random(f"steerability/{prompt.id}")
    fewest, most = options.get("num", (1, 3))
    kinds = list(options.get("constraints", ()))
    chosen = rng.sample(kinds, min(len(kinds), rng.randint(int(fewest), int(most))))
    constraints = [str(rng.choice(list(kind))) for kind in chosen]
    manner = {
        "tone": rng.choice(["", *options.get("tones", ())]),
        "persona": rng.choice(["", *options.get("personas", ())]),
    }
    (system,) = ask(handle, __file__, "system", constraints=constraints, **manner)
    if not system.finished or not system.strip():
        yield Rejected("no whole system prompt", system)
        return
    opening = [Message(role="system", content=system.strip()), *prompt.prompt]
    (answer,) = handle.generate(opening)
    for _ in range(int(options.get("repairs", 2))):
        broken = _broken(answer, constraints)
        if not broken:
            break
        before = [*opening, Message(role="assistant", content=answer or "?")]
        (answer,) = ask(handle, __file__, "again", before=before, broken=", ".join(broken))
    broken = _broken(answer, constraints)
    if broken or not answer.finished or not answer.strip():
        yield Rejected(f"breaks {broken[0] if broken else 'off'}", answer)
        return
    if any(manner.values()):
        question = prompt.prompt[-1].content
        told = {"system": str(system), "question": question, "response": str(answer)}
        grade = handle.judge("steered", {**told, **manner})
        if grade is None or grade.score < grade.maximum:
            yield Rejected("not the tone or role", answer)
            return
    yield Example(
        messages=(*opening, Message(role="assistant", content=answer.strip())),
        capability="steerability",
        source="+".join(sorted(constraints)) or "manner",
    )


def _broken(answer: str, constraints: Sequence[str]) -> list[str]:
    return [one for one in constraints if not keeps(answer, one)]


def revise(candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle) -> str | None:
    """A second try that knows which constraints the first one broke."""
    words = cast(list[str], prompt.reference.get("words", []))
    constraints = cast(list[str], needed(prompt, "constraints", "steerability"))
    broken = [c for c in constraints if not keeps(candidate.response, c, words)]
    if not broken:
        return None
    (said,) = ask(
        handle, __file__, "again", before=list(candidate.messages), broken=", ".join(broken)
    )
    return said if said.finished else None


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict | None:
    """Whether the response keeps `reference.constraints`, and says `reference.words` if any.

    None of a free dialog.
    """
    if not prompt.reference:
        return None
    constraints = cast(list[str], needed(prompt, "constraints", "steerability"))
    words = cast(list[str], prompt.reference.get("words", []))
    broken = [c for c in constraints if not keeps(candidate.response, c, words)]
    if broken:
        return Verdict(False, f"not kept: {', '.join(broken)}")
    if not words:
        return Verdict(True, "every constraint is kept")
    said = re.findall(r"\w+", candidate.response.lower())
    ending = [c.split()[-1] for c in constraints if c.startswith("end with")]
    rest = said[:-1] if ending and said[-1:] == ending else said
    wanted = [w for w in words if not ("no digits" in constraints and w.isdigit())]
    if any(c.startswith("exactly") for c in constraints):
        right = bool(said) and not set(rest) - set(wanted)
    else:
        right = sorted(rest) == sorted(wanted)
    return Verdict(right, f"the response says {said}, asked for {wanted}")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Share of responses that keep no constraint at all, filler, length, pass rate by level."""

    def ignored(response: str, prompt: Prompt) -> bool:
        words = prompt.reference.get("words", [])
        constraints = prompt.reference.get("constraints", [])
        return not any(keeps(response, one, words) for one in constraints)

    return measures(candidates, prompts, {"ignored_share": ignored})
