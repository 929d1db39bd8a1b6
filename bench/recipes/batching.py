"""Tokens a second of a hook that asks row by row, beside one call with all rows.

The same prompts, lengths and engine (transformers, the tiny base). The hook asks two questions a
row, the second about the first answer; one call answers all first questions, and another all second
ones. Contestants take turns.

    python -m bench.recipes.batching --rows 500
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from bench.machine import command, write_result
from posttrain.generation import Request
from posttrain.hook_rows import HookRows
from posttrain.hooks import Handle
from posttrain.rows import Message
from posttrain.sampling.service import open_engine
from posttrain.settings.engines import TransformersEngineSettings
from posttrain.settings.judges import NoJudge
from posttrain.settings.plan import Sampling
from posttrain.settings.recipe import RecipeSettings
from posttrain.settings.resources import Resources
from posttrain.settings.stages import HookStage
from posttrain.steps.output import Inputs, Output
from posttrain.workspace import Workspace

ROOT = Path(__file__).parent.parent.parent
BASE = ROOT / "rounds" / "tiny" / "base"
MAX_TOKENS = 24


def question(number: int, before: str = "") -> tuple[Message, ...]:
    """The first question about a number, or the second one, after an answer."""
    first = Message(role="user", content=f"{number}+{number % 7}=?")
    if not before:
        return (first,)
    again = Message(role="user", content="and one more?")
    return first, Message(role="assistant", content=before), again


def by_rows(rows: int, live: int) -> tuple[float, int]:
    """Seconds, and tokens that were asked for, through hooks."""

    def work(number: int, handle: Handle) -> list[str]:
        (first,) = handle.generate(question(number), max_tokens=MAX_TOKENS)
        (second,) = handle.generate(question(number, first or "0"), max_tokens=MAX_TOKENS)
        return [first, second]

    stage = HookStage(
        round=1,
        seed=0,
        sampling=Sampling(),
        judge=NoJudge(),
        embedder="minilm",
        live=live,
        recipes={"math": RecipeSettings(name="math")},
    )
    with tempfile.TemporaryDirectory() as temporary:
        work_folder = Path(temporary)
        inputs = Inputs(
            {"policy": BASE}, Workspace(ROOT), Resources(device="cpu"), work_folder / "machine.json"
        )
        out = Output(work_folder / "step", lambda done, total: None)
        with closing(HookRows(inputs, stage, out)) as hooks:
            tasks: list[tuple[str, Any]] = [("warm", partial(work, 0))]
            list(hooks.run("math", "warm", tasks))
            tasks = [(f"{number:05}", partial(work, number)) for number in range(rows)]
            begun = time.process_time()
            outcomes = list(hooks.run("math", "bench", tasks))
            seconds = time.process_time() - begun
    return seconds, texts(text for one in outcomes for text in one.value or ())


def by_calls(rows: int) -> tuple[float, int]:
    """The same with one call for all first questions and one for all second ones."""
    engine = open_engine(TransformersEngineSettings(), BASE, None, "cpu")
    with closing(engine):
        engine.generate(requests({0: ""}))
        begun = time.process_time()
        first = [one[0].text for one in engine.generate(requests(dict.fromkeys(range(rows), "")))]
        told = {number: text or "0" for number, text in enumerate(first)}
        second = [one[0].text for one in engine.generate(requests(told))]
        seconds = time.process_time() - begun
    return seconds, texts([*first, *second])


def requests(before: dict[int, str]) -> list[Request]:
    """Questions about numbers, after what was answered."""
    return [
        Request(
            id=f"{number:05}",
            messages=question(number, text),
            seed=number,
            max_tokens=MAX_TOKENS,
        )
        for number, text in before.items()
    ]


def texts(found: Iterable[str]) -> int:
    """Characters, which stand for tokens: the tiny tokenizer has few longer ones."""
    return sum(len(text) + 1 for text in found)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    contestants = {
        "one call": partial(by_calls, options.rows),
        "hooks, all rows live": partial(by_rows, options.rows, options.rows),
        "hooks, 256 rows live": partial(by_rows, options.rows, 256),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.repeats):
        for name, run in contestants.items():
            seconds, amount = run()
            rates[name].append(amount / seconds)
    medians = {name: statistics.median(own) for name, own in rates.items()}
    write_result(
        Path(__file__).parent / "batching.json",
        {
            "command": command("recipes.batching"),
            "characters a second of processor time": {n: round(v) for n, v in medians.items()},
            "share of one call": {
                name: round(value / medians["one call"], 3) for name, value in medians.items()
            },
        },
    )


if __name__ == "__main__":
    main()
