"""Code that passes its tests: problems, solutions and tests that a model writes, and repairs.

Knows how a snippet becomes a problem, a solution that was run, a translation or an explanation, and
how to find the code in a response. Runs nothing itself: programs go to the handle's sandbox.

    posttrain recipes test code --model MODEL
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from posttrain.hooks import Handle, PromptRequest, Rejected, Verdict, ask, user_turn
from posttrain.ladders import measures, needed
from posttrain.rows import Candidate, Example, Message, Prompt

from .ladder import questions
from .programs import (
    called,
    defines,
    extract_code,
    extract_tests,
    fault,
    fenced,
    last_line,
    program,
    same_lines,
)

FUNCTION = "f"
"""What a solution without a name of its own is called in tests."""


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """Problems with tests, of six levels (`options: {levels: [1, 2]}`); see ladder.py."""
    return questions(request)


def synthesize(prompt: Prompt, handle: Handle) -> Iterator[Example | Rejected]:
    """What `options.makes` names, from a snippet of code (section 4.3.1)."""
    snippet = str(needed(prompt, "text", "code"))
    makes = handle.options.get("makes", ["feedback"])
    if "feedback" in makes or "translation" in makes:
        solved = _solved(snippet, handle)
        if isinstance(solved, Rejected):
            yield solved
        else:
            if "feedback" in makes:
                yield _example(solved.problem, solved.said, solved.how)
            if "translation" in makes:
                for language in handle.options.get("languages", ()):
                    yield _translated(solved, language, handle)
    if "backtranslation" in makes:
        yield _explained(snippet, handle)


class Solved(NamedTuple):
    """A problem whose solution passed."""

    problem: str
    said: str
    """The response that holds the code."""
    code: str
    tests: list[str]
    how: str
    """`first_try`, `repaired` (the solution or its tests were), or `polished` after that."""


def _solved(snippet: str, handle: Handle) -> Solved | Rejected:
    """A problem inspired by a snippet, its solution, and tests that it passes in the sandbox."""
    (problem,) = ask(handle, __file__, "problem", text=snippet)
    if not problem.finished or not problem.strip():
        return Rejected("no whole problem", problem)
    (said,) = ask(handle, __file__, "solution", problem=problem)
    code = extract_code(said, FUNCTION)
    (listed,) = ask(handle, __file__, "tests", problem=problem, code=code)
    tests = extract_tests(listed)
    if not tests:
        return Rejected("no tests", listed)
    opening = user_turn(handle, __file__, "solution", problem=problem)
    how = "first_try"
    for left in range(int(handle.options.get("repairs", 3)), -1, -1):
        wrong = fault(code, tests, handle)
        if not wrong:
            solved = Solved(str(problem), str(said), code, tests, how)
            return _polished(solved, opening, handle)
        if left:
            how = "repaired"
            (answer,) = ask(
                handle,
                __file__,
                "repair",
                before=[opening, Message(role="assistant", content=said or "?")],
                fault=wrong,
                tests="\n".join(tests),
            )
            # The model decides which of the two is at fault by what it writes again.
            rewritten, better = extract_tests(answer), extract_code(answer, FUNCTION)
            if rewritten and not defines(better):
                tests = rewritten
            elif better:
                said, code = answer, better
    return Rejected("never passes its tests", wrong)


def _polished(solved: Solved, opening: Message, handle: Handle) -> Solved | Rejected:
    """The solution as the judge gives it both points; hard ones are revised, not dropped."""
    revisions = int(handle.options.get("polish", 0))
    if not revisions:
        return solved
    for left in range(revisions, -1, -1):
        variables = {"problem": solved.problem, "response": solved.said}
        grade = handle.judge("code_style", variables)
        if grade is None or grade.score == grade.maximum:
            return solved
        if left:
            before = [opening, Message(role="assistant", content=solved.said)]
            (answer,) = ask(handle, __file__, "polish", before=before)
            code = extract_code(answer, FUNCTION)
            if code and not fault(code, solved.tests, handle):
                solved = solved._replace(said=str(answer), code=code, how="polished")
    return Rejected("not correct and well written to the judge", solved.said)


def _translated(solved: Solved, language: str, handle: Handle) -> Example | Rejected:
    """The solution in another language, run where an interpreter is there."""
    calls = [call for test in solved.tests if (call := called(test))]
    printing = [f"print(json.dumps({call}))" for call in calls]
    expected = handle.run_code("\n".join(["import json", solved.code, *printing, ""]))
    if not calls or not expected.ok:
        return Rejected("no calls to compare a translation by", expected.stderr)
    (answer,) = ask(handle, __file__, "translate", language=language, code=solved.code, calls=calls)
    translated = fenced(answer)
    if not translated:
        return Rejected(f"{language}: no code", answer)
    result = handle.run_code(translated, language=language, check=True)
    if result.ok:
        result = handle.run_code(translated, language=language)
    if not result.ok:
        return Rejected(f"{language}: does not run", last_line(result))
    if not same_lines(result.stdout, expected.stdout):
        return Rejected(f"{language}: other results", f"{result.stdout} for {expected.stdout}")
    asked = f"Translate this Python code to {language}.\n\n```python\n{solved.code}\n```"
    return _example(asked, str(answer), f"translation/{language}")


def _explained(snippet: str, handle: Handle) -> Example | Rejected:
    """An explanation so good that the code can be written again from it (backtranslation)."""
    (explanation,) = ask(handle, __file__, "explain", code=snippet)
    if not explanation.finished:
        return Rejected("no whole explanation", explanation)
    (answer,) = ask(handle, __file__, "implement", explanation=explanation)
    code = fenced(answer) or extract_code(answer, FUNCTION)
    grade = handle.judge("code_faithful", {"code": snippet, "response": code}) if code else None
    if grade is None:
        return Rejected("backtranslation not graded", answer)
    if grade.score < grade.maximum:
        return Rejected("backtranslation not faithful", answer)
    asked = f"Explain what this code does.\n\n```python\n{snippet}\n```"
    return _example(asked, str(explanation), "backtranslation")


def revise(candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle) -> str | None:
    """A second try that has seen what went wrong when the first one ran."""
    (answer,) = ask(
        handle, __file__, "again", before=list(candidate.messages), fault=verdict.evidence
    )
    return answer if answer.finished else None


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict:
    """Whether the code of the response passes `reference.tests` in the sandbox.

    `reference.name` is what the tests call the function, `f` where it is not said.
    """
    tests = [str(test) for test in list(needed(prompt, "tests", "code"))]  # type: ignore[call-overload]
    code = extract_code(candidate.response, str(prompt.reference.get("name", FUNCTION)))
    if not code:
        return Verdict(False, "no Python code in the response")
    mark = hashlib.sha256("\n".join([prompt.id, *tests]).encode()).hexdigest()
    result = handle.run_code(program(code, tests, f"print('{mark}')"))
    if not result.ok:
        return Verdict(False, last_line(result))
    if mark not in result.stdout:
        return Verdict(False, "the program ended before its tests did")
    return Verdict(True, f"{len(tests)} tests passed")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Share of responses without code, filler, mean length, pass rate by level."""

    def no_code(response: str, prompt: Prompt) -> bool:
        return not extract_code(response, FUNCTION)

    return measures(candidates, prompts, {"no_code_share": no_code})


def _example(asked: str, said: str, how: str) -> Example:
    turns = (Message(role="user", content=asked), Message(role="assistant", content=said))
    return Example(messages=turns, capability="code", source=how)
