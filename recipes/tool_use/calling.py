"""Calls of functions: read from a response, checked against their schemas, executed.

Knows the tools of tools.yaml and who executes which; every program runs in the handle's sandbox.

    execute(Call("calculator", {"expression": "2+3"}), tools, handle)
"""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from posttrain.hooks import Handle

Tool = Mapping[str, Any]
TOOLS: tuple[Tool, ...] = tuple(yaml.safe_load(Path(__file__).with_name("tools.yaml").read_text()))
ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
LONGEST = 2000
"""Characters of a result that go back to the model."""


class Call(NamedTuple):
    """One call."""

    name: str
    arguments: dict[str, Any]


def schema(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates and servers take it."""
    shown = {key: tool[key] for key in ("name", "description", "parameters")}
    return {"type": "function", "function": shown}


def read_calls(response: str) -> list[dict[str, Any]]:
    """The calls of a response: what stands in braces, one object a line; prose around is left out.

    Raises:
        ValueError: a line opens a brace but is no JSON object.
    """
    calls = []
    for line in response.splitlines():
        if "{" in line:
            value = json.loads(line[line.index("{") :])
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, got {line!r}")
            calls.append(value)
    return calls


def checked(values: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[Call]:
    """Objects as calls.

    Raises:
        ValueError: one is no call of these tools, or its arguments break the tool's JSON Schema.
    """
    known = {str(tool["name"]): tool for tool in tools}
    calls = []
    for value in values:
        name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
        if name not in known or not isinstance(arguments, dict):
            raise ValueError(f"expected a call of {' or '.join(known)}, got {json.dumps(value)}")
        try:
            Draft202012Validator(known[name]["parameters"]).validate(arguments)
        except ValidationError as error:
            raise ValueError(f"{name}: {error.message}") from error
        calls.append(Call(name, arguments))
    return calls


def execute(call: Call, tools: Sequence[Tool], handle: Handle) -> str:
    """What a call comes to, as the model is told.

    Raises:
        ValueError: it fails.
    """
    tool = next(one for one in tools if one["name"] == call.name)
    if tool["run"] == "search":
        found = handle.retrieve("search", call.arguments["query"], call.arguments.get("k", 3))
        return json.dumps([passage.text for passage in found], ensure_ascii=False)[:LONGEST]
    if tool["run"] == "python":
        program = str(call.arguments["code"])
    elif tool["run"] == "calculator":
        program = f"print({_arithmetic(str(call.arguments['expression']))})"
    else:
        told = json.dumps(json.dumps(call.arguments))
        program = f"{tool['code']}\nimport json\n"
        program += f"print(json.dumps({call.name}(**json.loads({told}))))"
    result = handle.run_code(program)
    if not result.ok:
        last = (result.stderr.strip().splitlines() or [result.limit or "it failed"])[-1]
        raise ValueError(f"{call.name}: {last}")
    return result.stdout.strip()[:LONGEST]


def _arithmetic(expression: str) -> str:
    """The expression, if it is one of numbers alone."""
    try:
        tree = ast.parse(expression.replace("^", "**").strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"calculator: {expression!r} cannot be read") from error
    for node in ast.walk(tree):
        number = not isinstance(node, ast.Constant) or isinstance(node.value, int | float)
        if not isinstance(node, ARITHMETIC) or not number:
            raise ValueError(f"calculator: {expression!r} is no arithmetic")
    return ast.unparse(tree)
