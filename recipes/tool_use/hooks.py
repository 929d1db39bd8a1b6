"""Calls of functions: single, parallel, nested and over several turns, validated and executed.

Knows how a dialog with calls comes about: a request, calls, what they came to, an answer. The calls
stand in the chat template's own format.

    posttrain recipes test tool_use --model MODEL
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from posttrain.hooks import Handle, PromptRequest, Rejected, Verdict, ask
from posttrain.ladders import measures, needed
from posttrain.rows import Candidate, Example, Message, Prompt, stable_seed

from .calling import TOOLS, Tool, checked, execute, read_calls, schema
from .ladder import questions

NEEDS = {
    "single": "that exactly one call of {name} is needed to answer it.",
    "parallel": "that several calls are needed which do not depend on each other, one of {name}.",
    "nested": "that one call is needed first, and its result goes into another call, of {name}.",
    "multi_turn": "that a call of {name} is needed, and more can be asked about afterwards.",
}


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """Requests whose calls are known, of six levels (`options: {levels: [1, 2]}`)."""
    return questions(request)


def synthesize(prompt: Prompt, handle: Handle) -> Iterator[Example | Rejected]:
    """A dialog in which calls are made and executed (section 4.3.5)."""
    options = handle.options
    kinds = list(options.get("kinds", NEEDS))
    kind = kinds[stable_seed("kind", prompt.id) % len(kinds)]
    tools = _shown(prompt.id, int(options.get("shown", 4)))
    (request,) = ask(
        handle,
        __file__,
        "request",
        tools=tools,
        text=prompt.reference.get("text", ""),
        need=NEEDS[kind].format(name=tools[0]["name"]),
    )
    if not request.finished or not request.strip():
        yield Rejected(f"{kind}: no whole request", request)
        return
    try:
        dialog = _acted([Message(role="user", content=request.strip())], tools, handle)
        if kind == "multi_turn":
            (more,) = ask(handle, __file__, "follow_up", dialog=_spoken(dialog))
            dialog = _acted([*dialog, Message(role="user", content=more.strip())], tools, handle)
    except ValueError as error:
        yield Rejected(f"{kind}: {str(error).partition(':')[0]}", str(error))
        return
    if not _is(kind, dialog):
        yield Rejected(f"{kind}: other calls than asked for", request)
        return
    yield Example(
        messages=tuple(dialog),
        tools=tuple(schema(tool) for tool in tools),
        capability="tool_use",
        source=kind,
    )


def _shown(row_id: str, num: int) -> list[Tool]:
    """The tool that is needed, then others."""
    order = sorted(TOOLS, key=lambda tool: stable_seed("tool", row_id, tool["name"]))
    return order[: num + 1]


def _acted(dialog: list[Message], tools: Sequence[Tool], handle: Handle) -> list[Message]:
    """The dialog until the assistant answers without a call.

    Raises:
        ValueError: a call cannot be read, breaks its schema or fails, or there is no end; what
            stands before the colon is the same for all of a kind.
    """
    schemas = [schema(tool) for tool in tools]
    for _ in range(int(handle.options.get("turns", 6))):
        (reply,) = handle.generate(dialog, tools=schemas)
        if not reply.finished or not reply.strip():
            raise ValueError("no whole answer: " + reply)
        try:
            values = read_calls(reply)
        except ValueError as error:
            raise ValueError(f"calls that are no JSON: {error}") from error
        if not values:
            return [*dialog, Message(role="assistant", content=reply.strip())]
        try:
            calls = checked(values, tools)
        except ValueError as error:
            raise ValueError(f"arguments against their schema: {error}") from error
        made = tuple(
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        )
        dialog = [*dialog, Message(role="assistant", content="", tool_calls=made)]
        for call in calls:
            try:
                result = execute(call, tools, handle)
            except ValueError as error:
                raise ValueError(f"calls that fail: {error}") from error
            dialog = [*dialog, Message(role="tool", content=result)]
    raise ValueError("no end: calls and calls")


def _is(kind: str, dialog: Sequence[Message]) -> bool:
    """Whether a dialog holds the calls that its kind is about."""
    numbers = [len(turn.tool_calls) for turn in dialog if turn.tool_calls]
    if kind == "single":
        return numbers == [1]
    if kind == "parallel":
        return max(numbers, default=0) > 1
    return len(numbers) > 1


def _spoken(dialog: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in dialog if turn.content]


def revise(candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle) -> str | None:
    """A second try that knows only that the calls were wrong."""
    (said,) = ask(handle, __file__, "again", before=list(candidate.messages))
    return said if said.finished else None


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict | None:
    """Whether the response makes exactly the calls of `reference.calls`, in any order.

    None of a free dialog.
    """
    if not prompt.reference:
        return None
    expected = cast(list[dict[str, Any]], needed(prompt, "calls", "tool_use"))
    try:
        made = read_calls(candidate.response)
    except ValueError as error:
        return Verdict(False, f"malformed JSON: {error}")
    if _unordered(made) == _unordered(expected):
        return Verdict(True, f"{len(made)} calls, as expected")
    return Verdict(False, f"calls {json.dumps(made)}, expected {json.dumps(expected)}")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Share of responses without readable calls, filler, length, pass rate by level."""

    def malformed(response: str, prompt: Prompt) -> bool:
        try:
            return not read_calls(response)
        except ValueError:
            return True

    return measures(candidates, prompts, {"malformed_share": malformed})


def _unordered(calls: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(one, sort_keys=True) for one in calls)
