"""Programs in responses: how to find, check, run and compare them.

Knows Python's grammar, a linter and the handle's sandbox. Knows nothing of models.

    fault(extract_code(response, "f"), ["assert f(1) == 2"], handle)
"""

import ast
import json
import re
import textwrap
from collections.abc import Sequence

from pyflakes.checker import Checker

from posttrain.hooks import Handle, RunResult

FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.S)
CODE_START = re.compile(r"^[ \t]*(?:def|from|import|@)\b|(?:\b\w+\s*=\s*)?\blambda\b", re.M)


def extract_code(response: str, name: str) -> str:
    """The program a response holds, its function bound to `name`; empty if there is none.

    A fenced block wins; else the code starts at the first `def` or `lambda`, and lines of prose
    after it are left out. A bare lambda, or a function with another name, is bound to `name`.
    """
    block = FENCE.search(response)
    if block:
        code = block.group(1)
    else:
        start = CODE_START.search(response)
        if start is None:
            return ""
        code = response[start.start() :]
    lines = textwrap.dedent(code.replace("`", "")).strip().splitlines()
    for end in range(len(lines), 0, -1):
        source = "\n".join(lines[:end])
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return _bind(source, tree, name)
    return "\n".join(lines)


def extract_tests(response: str) -> list[str]:
    """The assertions that a response lists, each a line; a bare comparison counts as one."""
    tests = []
    for line in (fenced(response) or response).splitlines():
        try:
            tree = ast.parse(line.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in tree.body:
            if isinstance(node, ast.Assert):
                tests.append(ast.unparse(node))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare):
                tests.append(f"assert {ast.unparse(node)}")
    return list(dict.fromkeys(tests))


def fault(code: str, tests: Sequence[str], handle: Handle) -> str:
    """What is wrong with a solution: parsed, linted, run; empty if nothing is."""
    if not code:
        return "There is no Python code in the answer."
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"It cannot be parsed: {error}"
    told = [str(one.message % one.message_args) for one in Checker(tree).messages]
    if told:
        return "The linter says: " + "; ".join(told)
    result = handle.run_code(program(code, tests))
    if result.ok:
        return ""
    how = result.limit or f"exit status {result.returncode}"
    return f"It ended with {how}.\nstdout: {result.stdout[-500:]}\nstderr: {result.stderr[-1000:]}"


def program(code: str, tests: Sequence[str], ending: str = "") -> str:
    """Code, then its tests, then a last statement."""
    return "\n".join([code, *map(_with_message, tests), ending, ""])


def defines(code: str) -> bool:
    """Whether code is more than a list of assertions."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(node, ast.Assert | ast.Expr) for node in body)


def called(test: str) -> str:
    """The call whose result a test compares; empty where it does something else."""
    node = ast.parse(test).body[0]
    compared = node.test if isinstance(node, ast.Assert) else None
    if isinstance(compared, ast.Compare) and isinstance(compared.left, ast.Call):
        return ast.unparse(compared.left)
    return ""


def same_lines(stated: str, expected: str) -> bool:
    """Whether two programs printed the same values as JSON."""
    try:
        values = [[json.loads(line) for line in text.splitlines()] for text in (stated, expected)]
    except ValueError:
        return False
    return bool(values[0] == values[1])


def last_line(result: RunResult) -> str:
    """The last thing a program said of its failure."""
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else result.limit or f"exit status {result.returncode}"


def fenced(text: str) -> str:
    """The first fenced block of a text; empty if there is none."""
    found = FENCE.search(text)
    return textwrap.dedent(found.group(1)).strip() if found else ""


def _bind(source: str, tree: ast.Module, name: str) -> str:
    """The source with its function under `name`: a bare lambda, or the last one defined."""
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Lambda):
        start = "\n".join(source.splitlines()[: last.lineno - 1])
        return f"{start}\n{name} = {ast.unparse(last.value)}".lstrip("\n")
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assigned = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    if name in defined + assigned or not defined + assigned:
        return source
    return f"{source}\n{name} = {(defined or assigned)[-1]}"


def _with_message(test: str) -> str:
    """An assertion that says what it asserts, so that the evidence names the failing case."""
    node = ast.parse(test).body[0]
    if isinstance(node, ast.Assert) and node.msg is None:
        return f"{test}, {ast.unparse(node.test)!r}"
    return test
