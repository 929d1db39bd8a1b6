"""Two measures of a row: quality from two signals, difficulty on three points (section 4.2.3).

Knows scores, grades, levels and pass rates; asks no model.

    rate_quality(rows, Quality())     # top quartile of the reward model, or the judge's maximum
    rate_difficulty(rows, Difficulty())
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from posttrain.curation.contract import Row, StepResult, drop
from posttrain.errors import BadInput
from posttrain.settings.pipeline import Difficulty, Quality


def rate_quality(rows: Sequence[Row], settings: Quality) -> StepResult:
    """Set `quality`, how many of the two signals call a row best, and drop the others.

    The reward signal is the top share of the scored rows of a capability, human ones aside. Human
    rows are rated where they have a score or grade, and always stay.
    """
    floors = reward_floors(rows, settings.rm_top_share)
    result = StepResult([], [], {}, {})
    notes: dict[str, dict[str, int]] = {}
    for row in rows:
        by_reward = row.score is not None and row.score >= floors.get(
            row.example.capability, math.inf
        )
        graded = settings.use_judge and row.grade is not None
        by_judge = graded and row.grade is not None and row.grade.score >= row.grade.maximum
        rated = row._replace(quality=by_reward + by_judge)
        note = notes.setdefault(row.example.capability, dict.fromkeys(NOTES, 0))
        if row.human:
            note["human"] += 1
            result.kept.append(rated.decide("quality", "written by a person"))
            continue
        for name, counts in zip(
            NOTES,
            (by_reward, by_judge, by_reward or by_judge, by_reward and by_judge),
            strict=False,
        ):
            note[name] += counts
        note["without_score"] += row.score is None
        note["without_grade"] += not graded
        rated = rated.decide("quality", _verdict(by_reward, by_judge, settings))
        passes = {
            "union": by_reward or by_judge,
            "reward": by_reward,
            "judge": by_judge,
            "all": True,
        }
        if passes[settings.keep]:
            result.kept.append(rated)
        elif row.score is None and not graded:
            result.dropped.append(drop(rated, "quality", "neither score nor grade"))
        else:
            result.dropped.append(drop(rated, "quality", f"not best by {settings.keep}"))
    return result._replace(notes=notes)


NOTES = ("reward", "judge", "union", "both", "human", "without_score", "without_grade")
"""What is counted per capability; all but `human` count rows that no person wrote."""


def reward_floors(rows: Sequence[Row], top_share: float) -> Mapping[str, float]:
    """Per capability the lowest score that is still in the top share; ties reach in."""
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.score is not None and not row.human:
            scores[row.example.capability].append(row.score)
    return {
        capability: sorted(values, reverse=True)[math.ceil(top_share * len(values)) - 1]
        for capability, values in scores.items()
    }


def _verdict(by_reward: bool, by_judge: bool, settings: Quality) -> str:
    reward = f"reward top {settings.rm_top_share:.0%}"
    signals = [reward] * by_reward + ["judge maximum"] * by_judge
    return " and ".join(signals) or "neither signal"


def rate_difficulty(rows: Sequence[Row], settings: Difficulty) -> StepResult:
    """Set `difficulty`, 1 easy to 3 hard; drops nothing.

    From the prompt's level where it has one, else from `pass_rate`, the share of the prompt's K
    samples that passed, which the example carries; else `settings.unknown`, which is counted.

    Raises:
        BadInput: a pass rate that is no number from 0 to 1.
    """
    kept: list[Row] = []
    notes: dict[str, int] = {}
    for row in rows:
        difficulty, basis = _difficulty(row, settings)
        kept.append(
            row._replace(difficulty=difficulty).decide("difficulty", f"{difficulty} ({basis})")
        )
        for name in (f"difficulty {difficulty}", f"from {basis.split()[0]}"):
            notes[name] = notes.get(name, 0) + 1
    return StepResult(kept, [], {}, notes)


def _difficulty(row: Row, settings: Difficulty) -> tuple[int, str]:
    if row.prompt is not None and row.prompt.level is not None:
        level = row.prompt.level
        return 1 + sum(level > bound for bound in settings.level_bounds), f"level {level}"
    rate = (row.example.model_extra or {}).get("pass_rate")
    if rate is None:
        return settings.unknown, "nothing: no level, no pass rate"
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise BadInput(
            f"row {row.example.id}: pass_rate is {rate!r}, expected a number from 0 to 1"
        )
    return 1 + sum(rate < bound for bound in settings.pass_rate_bounds), f"pass_rate {rate:.3g}"
