"""Python one-liners: prompts on a ladder of six levels, and a verifier that runs tests.

Knows a small language of steps on numbers, strings and lists, and how to find the code in a
response. Runs no code itself: programs go to the handle's sandbox. A prompt depends on the seed
alone.

    list(prompts(PromptRequest(num=4, seed=1, round=0, options={"levels": [1, 3]}), handle))
"""

import ast
import hashlib
import math
import random
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from posttrain.errors import BadInput
from posttrain.hooks import Handle, PromptRequest, Verdict
from posttrain.rows import Candidate, Message, Prompt

FILLER = re.compile(r"(sure|certainly|of course|absolutely|great question)\b[!,.:]*\s*", re.I)
FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.S)
CODE_START = re.compile(r"^[ \t]*(?:def|from|import|@)\b|(?:\b\w+\s*=\s*)?\blambda\b", re.M)

ATOM, PRODUCT, SUM = 3, 2, 1


class Step(NamedTuple):
    """One operation: what a prompt calls it, and its code around the expression `{e}`.

    `{k}` in both is a parameter, one of `ks`. An expression that binds looser than `needs` is put
    in brackets; `gives` is how tightly the result binds.
    """

    text: str
    code: str
    ks: tuple[object, ...] = ("",)
    needs: int = ATOM
    gives: int = ATOM


FEW, WIDE = (2, 3, 4), tuple(range(2, 100))
LETTERS, ENDINGS = tuple("aeilnorstuxy"), ("ab", "xy", "no", "!")
NUMBERS = (
    Step("plus {k}", "{e}+{k}", WIDE, SUM, SUM),
    Step("minus {k}", "{e}-{k}", WIDE, SUM, SUM),
    Step("times {k}", "{e}*{k}", WIDE, PRODUCT, PRODUCT),
)
STRINGS = (
    Step("reverse", "{e}[::-1]"),
    Step("upper", "{e}.upper()"),
    Step("title", "{e}.title()"),
    Step("first {k}", "{e}[:{k}]", FEW),
    Step("last {k}", "{e}[-{k}:]", FEW),
    Step("repeat {k}", "{e}*{k}", FEW, PRODUCT, PRODUCT),
    Step("add {k!r}", "{e}+{k!r}", ENDINGS, SUM, SUM),
    Step("drop {k!r}", "{e}.replace({k!r},'')", LETTERS),
)
COUNTS = (
    Step("length", "len({e})", needs=0),
    Step("count {k!r}", "{e}.count({k!r})", LETTERS),
)
LISTS = (
    Step("reverse", "{e}[::-1]"),
    Step("sort", "sorted({e})", needs=0),
    Step("first {k}", "{e}[:{k}]", FEW),
    Step("each plus {k}", "[v+{k} for v in {e}]", WIDE),
    Step("each minus {k}", "[v-{k} for v in {e}]", WIDE),
    Step("each times {k}", "[v*{k} for v in {e}]", WIDE),
    Step("keep above {k}", "[v for v in {e} if v>{k}]", WIDE),
)
TOTALS = (
    Step("sum", "sum({e})", needs=0),
    Step("length", "len({e})", needs=0),
    Step("largest", "max({e},default=0)", needs=0),
)


def _small(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The same steps with parameters below 20, for prompts of several steps."""
    return tuple(step._replace(ks=WIDE[:18]) if step.ks is WIDE else step for step in steps)


LADDER: dict[int, tuple[str, tuple[tuple[Step, ...], ...]]] = {
    1: ("x", (NUMBERS,)),
    2: ("a", (LISTS,)),
    3: ("x", (_small(NUMBERS), _small(NUMBERS))),
    4: ("s", (STRINGS, STRINGS + COUNTS)),
    5: ("a", (LISTS, TOTALS)),
    6: ("a", (_small(LISTS), _small(LISTS), TOTALS)),
}
"""Level to the argument's name (x a number, s a string, a a list) and the steps in order."""

INPUTS: dict[str, tuple[object, ...]] = {
    "x": (0, 1, 7, -3, 25),
    "s": ("Hello you", "eelllrrrt", "ttxxxyyyox", "nuu in rust", "a"),
    "a": ([3, 1, 2], [10, 20, 5, 8, 41], [], [30, 4, 12, 9, 7, 16, 2, 19, 6]),
}


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """`request.num` different prompts, spread evenly over `options["levels"]`, easiest first.

    Raises:
        BadInput: an unknown option or level, or more prompts of a level than exist.
    """
    levels = _levels(request.options)
    for place, level in enumerate(levels):
        num = request.num // len(levels) + (place < request.num % len(levels))
        name, stages = LADDER[level]
        size = num_prompts(level)
        if num > size:
            raise BadInput(
                f"code level {level} has {size} different prompts, {num} were asked for: "
                "lower num or name more levels"
            )
        for index in random.Random(f"code/{level}/{request.seed}").sample(range(size), num):
            yield _prompt(name, _steps_at(stages, index), level)


def num_prompts(level: int) -> int:
    """How many different prompts a level has."""
    return math.prod(sum(len(step.ks) for step in stage) for stage in LADDER[level][1])


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict:
    """Whether the code of the response passes `reference["tests"]` in the sandbox."""
    name, tests = str(prompt.reference["name"]), [str(t) for t in prompt.reference["tests"]]
    code = extract_code(candidate.response, name)
    if not code:
        return Verdict(False, "no Python code in the response")
    mark = hashlib.sha256("\n".join([prompt.id, *tests]).encode()).hexdigest()
    result = handle.run_code("\n".join([code, *map(_with_message, tests), f"print('{mark}')", ""]))
    last = (result.stderr.strip().splitlines() or [""])[-1]
    if not result.ok:
        return Verdict(False, last or result.limit or f"exit status {result.returncode}")
    if mark not in result.stdout:
        return Verdict(False, "the program ended before its tests did")
    return Verdict(True, last or f"{len(tests)} tests passed")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Shares of responses with a filler and without code, mean length, pass rate by level."""
    if not candidates:
        return {}
    texts = [candidate.response for candidate in candidates]
    measures = {
        "filler_share": sum(FILLER.match(text) is not None for text in texts) / len(texts),
        "no_code_share": sum(not extract_code(text, "f") for text in texts) / len(texts),
        "mean_characters": sum(map(len, texts)) / len(texts),
    }
    level_of = {prompt.id: prompt.level for prompt in prompts}
    verdicts: dict[int, list[bool]] = {}
    for candidate in candidates:
        level = level_of.get(candidate.prompt_id)
        if level is not None and candidate.passed is not None:
            verdicts.setdefault(level, []).append(candidate.passed)
    for level, passed in sorted(verdicts.items()):
        measures[f"pass_rate_level_{level}"] = sum(passed) / len(passed)
    return measures


def extract_code(response: str, name: str) -> str:
    """The program a response holds, its function bound to `name`; empty if there is none.

    A fenced block wins; else the code starts at the first `def` or `lambda`, and lines of prose
    after it are left out. A bare lambda, or a function with another name, is bound to `name`.
    """
    fenced = FENCE.search(response)
    if fenced:
        code = fenced.group(1)
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


def render(name: str, steps: Sequence[tuple[Step, object]]) -> str:
    """The right response to a prompt made of these steps: one lambda."""
    expression, binds = name, ATOM
    for step, k in steps:
        inside = f"({expression})" if binds < step.needs else expression
        expression = step.code.format(e=inside, k=k)
        binds = step.gives
    return f"lambda {name}: {expression}"


def parse(text: str) -> tuple[str, list[tuple[Step, object]]]:
    """The argument's name and the steps that a prompt of this recipe asks for.

    Raises:
        BadInput: the text is no prompt of this recipe.
    """
    match = re.fullmatch(r"f\((\w)\): \w (.*)", text)
    kinds = {"x": NUMBERS, "s": STRINGS + COUNTS, "a": LISTS + TOTALS}
    if match is None or match.group(1) not in kinds:
        raise BadInput(f"expected a prompt such as `f(x): x plus 2`, got {text!r}")
    name, steps = match.group(1), []
    for part in match.group(2).split(" then "):
        known = [(s, k) for s in kinds[name] for k in s.ks if s.text.format(k=k) == part]
        if not known:
            raise BadInput(f"no step is called {part!r} in {text!r}")
        steps.append(known[0])
    return name, steps


def _levels(options: Mapping[str, Any]) -> list[int]:
    unknown = set(options) - {"levels"}
    levels = options.get("levels", list(LADDER))
    if unknown or not isinstance(levels, list | tuple) or not levels or set(levels) - set(LADDER):
        raise BadInput(
            f"code prompts take options {{levels: some of {list(LADDER)}}}, got {dict(options)}"
        )
    return sorted(set(levels))


def _steps_at(stages: Sequence[Sequence[Step]], index: int) -> list[tuple[Step, object]]:
    """The composition at a place of its level: one (step, parameter) from each stage."""
    steps = []
    for stage in stages:
        choices = [(step, k) for step in stage for k in step.ks]
        index, place = divmod(index, len(choices))
        steps.append(choices[place])
    return steps


def _prompt(name: str, steps: Sequence[tuple[Step, object]], level: int) -> Prompt:
    wanted = " then ".join(step.text.format(k=k) for step, k in steps)
    # The text of this function is ours alone, never a model's: safe to evaluate here.
    function = eval(render(name, steps))
    inputs = list(INPUTS[name])
    if name == "a":
        # Values around each parameter tell `keep above 7` from `keep above 8`.
        inputs += [[k + 1, k - 1, k] for _, k in steps if isinstance(k, int)]
    tests = [f"assert f({value!r}) == {function(value)!r}" for value in inputs]
    return Prompt(
        prompt=(Message(role="user", content=f"f({name}): {name} {wanted}"),),
        capability="code",
        source="code/prompts",
        level=level,
        reference={"tests": tests, "name": "f"},
    )


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
