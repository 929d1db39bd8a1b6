"""Two measures of a row: quality from two signals, difficulty on three points (section 4.2.3).

Knows scores, grades, levels and pass rates; asks no model.

    rate_quality(rows, Quality())     # top quartile of the reward model, or the judge's maximum
    rate_difficulty(rows, Difficulty())
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import regex

from posttrain.curation.contract import Row, StepResult, drop
from posttrain.dedup import semantic_dedup
from posttrain.embedding import Embedded
from posttrain.errors import BadInput
from posttrain.settings.pipeline import Difficulty, Quality

WORD = regex.compile(r"[\w+#]+")
NOTES = ("reward", "judge", "union", "both", "human", "without_score", "without_grade")
"""What is counted per capability; all but `human` count rows that no person wrote."""


class Signals(NamedTuple):
    """What the two signals say of one row."""

    reward: bool
    """The score is among its capability's top share."""
    judge: bool
    """The grade is its scale's maximum."""
    known: bool
    """There is a score or a grade that counts."""


def rate_quality(rows: Sequence[Row], settings: Quality) -> StepResult:
    """Set `quality`, how many of the two signals call a row best, and drop the others.

    The reward signal is the top share of the scored rows of a capability, human ones aside. Human
    rows are rated where they have a score or grade, and always stay.
    """
    floors = reward_floors(rows, settings.rm_top_share)
    result = StepResult([], [], {}, {})
    notes: dict[str, Counter[str]] = {}
    for row in rows:
        signals = _signals(row, floors, settings)
        quality = signals.reward + signals.judge if signals.known or not row.human else None
        rated = row._replace(quality=quality)
        capability = row.capability
        notes.setdefault(capability, Counter(dict.fromkeys(NOTES, 0))).update(
            _notes(row, signals, settings)
        )
        if row.human:
            result.kept.append(rated.decide("quality", "written by a person"))
            continue
        rated = rated.decide("quality", _verdict(signals, settings))
        passes = {
            "union": signals.reward or signals.judge,
            "reward": signals.reward,
            "judge": signals.judge,
            "all": True,
        }
        reason = f"not best by {settings.keep}" if signals.known else "neither score nor grade"
        if not signals.known and settings.unscored == "keep":
            result.kept.append(row.decide("quality", "neither score nor grade"))
        elif passes[settings.keep]:
            result.kept.append(rated)
        else:
            result.dropped.append(drop(rated, "quality", reason))
    return result._replace(notes={c: dict(counts) for c, counts in sorted(notes.items())})


def reward_floors(rows: Sequence[Row], top_share: float) -> Mapping[str, float]:
    """Per capability the lowest score that is still in the top share; ties reach in."""
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.score is not None and not row.human:
            scores[row.capability].append(row.score)
    return {
        capability: sorted(values, reverse=True)[math.ceil(top_share * len(values)) - 1]
        for capability, values in scores.items()
    }


def _signals(row: Row, floors: Mapping[str, float], settings: Quality) -> Signals:
    floor = floors.get(row.capability, math.inf)
    grade = row.grade if settings.use_judge else None
    return Signals(
        reward=row.score is not None and row.score >= floor,
        judge=grade is not None and grade.score >= grade.maximum,
        known=row.score is not None or grade is not None,
    )


def _notes(row: Row, signals: Signals, settings: Quality) -> list[str]:
    """The counters that a row adds one to."""
    if row.human:
        return ["human"]
    applies = {
        "reward": signals.reward,
        "judge": signals.judge,
        "union": signals.reward or signals.judge,
        "both": signals.reward and signals.judge,
        "without_score": row.score is None,
        "without_grade": row.grade is None or not settings.use_judge,
    }
    return [name for name, holds in applies.items() if holds]


def _verdict(signals: Signals, settings: Quality) -> str:
    reward = f"reward top {settings.rm_top_share:.0%}"
    said = [reward] * signals.reward + ["judge maximum"] * signals.judge
    return " and ".join(said) or "neither signal"


def rate_difficulty(
    rows: Sequence[Row],
    settings: Difficulty,
    embed: Callable[[Sequence[str]], Embedded] | None = None,
) -> StepResult:
    """Set `difficulty`, 1 easy to 3 hard; drops nothing.

    From the first of the settings' measures that the row has, else `settings.unknown`, which is
    counted. Without an embedder tags are compared as text alone.

    Raises:
        BadInput: a pass rate that is no number from 0 to 1, or a judge's difficulty off its scale.
    """
    one_tag = normal_tags([tag for row in rows for tag in row.tags], settings.tag_cosine, embed)
    kept: list[Row] = []
    notes: Counter[str] = Counter()
    for row in rows:
        difficulty, basis = _difficulty(row, settings, one_tag)
        kept.append(
            row._replace(difficulty=difficulty).decide("difficulty", f"{difficulty} ({basis})")
        )
        notes.update([f"difficulty {difficulty}", f"from {basis.split()[0]}"])
    return StepResult(kept, [], {}, dict(sorted(notes.items())))


def normal_tags(
    tags: Sequence[str],
    cosine: float,
    embed: Callable[[Sequence[str]], Embedded] | None = None,
) -> Mapping[str, str]:
    """Each tag's normal form: lower case, no marks, and of near ones the most frequent (InsTag)."""
    plain = {tag: " ".join(WORD.findall(tag.casefold())) for tag in set(tags)}
    counts = Counter(plain[tag] for tag in tags)
    ranked = sorted(counts, key=lambda form: (-counts[form], form))
    stands_for = {form: form for form in ranked}
    if embed is not None and ranked:
        for gone in semantic_dedup(embed(ranked).vectors_ND, range(len(ranked)), cosine):
            stands_for[ranked[gone.row]] = ranked[gone.keeper]
    return {tag: stands_for[form] for tag, form in plain.items()}


def _difficulty(row: Row, settings: Difficulty, one_tag: Mapping[str, str]) -> tuple[int, str]:
    for measure in settings.by:
        if measure == "level" and row.level is not None:
            return 1 + sum(row.level > b for b in settings.level_bounds), f"level {row.level}"
        if measure == "judge" and row.judged is not None:
            if isinstance(row.judged, bool) or row.judged not in (1, 2, 3):
                raise BadInput(f"row {row.id}: a judge's difficulty is 1 to 3, not {row.judged!r}")
            return int(row.judged), f"judge {row.judged}"
        if measure == "tags" and row.tags:
            count = len({one_tag[tag] for tag in row.tags})
            return 1 + sum(count > bound for bound in settings.tag_bounds), f"tags {count}"
        if measure == "pass_rate" and row.pass_rate is not None:
            rate = row.pass_rate
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise BadInput(
                    f"row {row.id}: pass_rate is {rate!r}, expected a number from 0 to 1"
                )
            harder = sum(rate < bound for bound in settings.pass_rate_bounds)
            return 1 + harder, f"pass_rate {rate:.3g}"
    return settings.unknown, "unknown"
