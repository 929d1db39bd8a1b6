"""Preference files of others as preference files of ours, outside of any run.

Knows files and rejects; what a format's columns mean, `preference_formats` knows.

    convert_file(Path("train.jsonl"), "helpsteer", Path("data/preferences/round-1.jsonl"),
                 "general", Strength.BETTER)
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from posttrain.errors import BadInput
from posttrain.preference_formats import of_helpsteer, of_trl
from posttrain.preference_rows import JudgedRow
from posttrain.rows import Preference, Strength
from posttrain.tables import Reject, complaint, excerpt, parse_row, raw_rows, write_rows

Format = Literal["trl", "helpsteer"]


class _Columns(BaseModel):
    """A row as it came."""

    model_config = ConfigDict(frozen=True)

    columns: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _all(cls, data: Any) -> Any:
        return {"columns": data}


def convert_file(path: Path, kind: Format, out: Path, capability: str, strength: Strength) -> str:
    """Write a file's preferences as rows that a plan's `preferences:` take; a line about it.

    Rows that state no preference get their reason in a file beside it, and are counted.

    Args:
        path: A .jsonl or .parquet file.
        kind: Its format.
        out: A .jsonl file.
        capability: Of rows that name none.
        strength: Of TRL's rows, which have none.

    Raises:
        BadInput: no such file, or no preference in it.
    """
    rejects_path = out.with_name(f"{out.stem}.rejects.jsonl")
    if path.resolve() in (out.resolve(), rejects_path.resolve()):
        raise BadInput(f"--out {out}: this would overwrite the rows; name another file")
    kept: dict[str, Preference] = {}
    rejects: list[Reject] = []
    reasons: Counter[str] = Counter()
    for number, raw in raw_rows(path):
        found = _preferences(raw, kind, capability, strength)
        if isinstance(found, str) or any(row.id in kept for row in found):
            reason = found if isinstance(found, str) else "the same id or content came before"
            rejects.append(Reject(path.name, number, reason, excerpt(raw)))
            reasons[reason.partition(":")[0]] += 1
            continue
        kept |= {row.id: row for row in found}
    if not kept:
        first = f"; the first: line {rejects[0].line}: {rejects[0].reason}" if rejects else ""
        raise BadInput(f"{path}: none of {len(rejects)} rows states a preference{first}")
    rejects_path.unlink(missing_ok=True)
    if rejects:
        write_rows(rejects_path, map(vars, rejects))
    write_rows(out, kept.values())
    strengths = Counter(str(row.strength) for row in kept.values())
    told = ", ".join(f"{strengths[s]} {s}" for s in map(str, reversed(Strength)) if strengths[s])
    line = f"{len(kept)} preferences ({told}) in {out}"
    if not rejects:
        return line
    counted = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
    return f"{line}; {len(rejects)} rows left out ({counted}): see {rejects_path}"


def _preferences(
    raw: object, kind: Format, capability: str, strength: Strength
) -> tuple[Preference, ...] | str:
    """What a row states, or why nothing."""
    row = parse_row(raw, _Columns)
    if isinstance(row, str):
        return row
    columns: Mapping[str, Any] = row.columns
    try:
        if kind == "trl":
            found: dict[str, Any] | str = of_trl(columns, capability, strength)
        else:
            found = of_helpsteer(columns, capability)
        return found if isinstance(found, str) else JudgedRow.model_validate(found).preferences
    except (ValueError, TypeError, LookupError) as error:
        return complaint(error) if isinstance(error, ValueError) else f"another shape: {error}"
