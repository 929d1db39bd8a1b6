"""Compares models that answered the same held-out prompts: paired differences, by level too.

Reads what measure steps published; knows no model. Rates are those of responses sampled at the
plan's temperature unless a mode is named.

    before, after = (answers(folder, "test", "sampled") for folder in (round_1, round_6))
    gain = difference([(before, after)], plan.mix, 0.95, level=6)
    gain.low > 0        # better outside the paired interval
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from posttrain.controller import Run
from posttrain.errors import Damaged
from posttrain.statistics import Rate, stratified_mean
from posttrain.tables import json_lines, read_json


class Prompted(NamedTuple):
    """A held-out prompt and the share of a model's responses to it that passed."""

    capability: str
    level: int | None
    passed: float


Answers = Mapping[str, Prompted]
"""Prompt's id → how its responses fared."""


def answers(folder: Path, split: str, mode: str) -> dict[str, Prompted]:
    """What a measure step found, prompt by prompt; prompts without a verifier are left out.

    Raises:
        Damaged: the step has not published its responses.
    """
    path = folder / "responses.jsonl"
    if not path.is_file():
        raise Damaged(f"{path}: missing; the measure is not published")
    verdicts: dict[str, list[bool]] = defaultdict(list)
    about: dict[str, tuple[str, int | None]] = {}
    for row in json_lines(path):
        if row["split"] == split and row["mode"] == mode and row.get("passed") is not None:
            verdicts[row["prompt_id"]].append(row["passed"])
            about[row["prompt_id"]] = (row["capability"], row.get("level"))
    return {key: Prompted(*about[key], fmean(oks)) for key, oks in verdicts.items()}


def rate_of(
    found: Answers, mix: Mapping[str, float], confidence: float, level: int | None = None
) -> Rate | None:
    """Pass rate weighted by the mix, of one level or of all; None where there is no prompt."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in found.values():
        if level is None or one.level == level:
            values[one.capability].append(one.passed)
    return stratified_mean(values, mix, confidence) if values else None


def difference(
    pairs: Sequence[tuple[Answers, Answers]],
    mix: Mapping[str, float],
    confidence: float,
    level: int | None = None,
) -> Rate | None:
    """How much more of the second model's responses pass, with a paired interval over prompts.

    Args:
        pairs: Two models' answers to the same prompts; several pairs (seeds) are pooled.
        mix: Capability → weight.
        confidence: Coverage of the interval, between 0 and 1.
        level: Look at prompts of this level alone.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for before, after in pairs:
        for key in before.keys() & after.keys():
            if level is None or before[key].level == level:
                values[before[key].capability].append(after[key].passed - before[key].passed)
    # Set order must not reach the sums' last bits.
    ordered = {name: sorted(some) for name, some in sorted(values.items())}
    return stratified_mean(ordered, mix, confidence) if ordered else None


def levels(found: Answers) -> list[int]:
    """Levels of the prompts, the easiest first."""
    return sorted({one.level for one in found.values() if one.level is not None})


def final_measure(run: Run) -> Path | None:
    """The measure of the policy that a finished run ends with; None while it is not finished."""
    last = len(run.plan.rounds)
    gate = run.steps[f"round-{last}/gate"]
    if run.folder.state(gate).kind != "done":
        return None
    policy = read_json(run.folder.path(gate) / "policy.json")
    measured: Path = run.folder.root / str(policy["step"]).partition("/")[0] / "measure"
    return measured
