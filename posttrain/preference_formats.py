"""Preference sets of others as rows of ours: TRL's files and HelpSteer's scale from −3 to 3.

Knows columns and what a scale's steps are called here; reads no file and judges nothing.

    of_helpsteer({"context": […], "response1": "…", "response2": "…", "overall_preference": -2},
                 "general")
"""

import re
from collections.abc import Mapping
from typing import Any

from posttrain.rows import Strength

TIE = "tie: a judgment, no preference"
HELPSTEER = {
    3: Strength.SIGNIFICANTLY,
    2: Strength.BETTER,
    1: Strength.SLIGHTLY,
}
"""HelpSteer's *much better*, *better* and *slightly better* (−3 to −1 for the first response, 1 to
3 for the second; Wang et al. 2024, arXiv 2410.01257); 0, about the same, is a tie. Nothing in it is
*marginally better*."""
_DOMAINS = {"code": "code", "multilingual": "multilingual"}
"""HelpSteer3's domains that are capabilities here; STEM and General take the one that is given."""
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
Row = Mapping[str, Any]


def of_trl(row: Row, capability: str, strength: Strength) -> dict[str, Any]:
    """A row of TRL's preference format (explicit or implicit prompt, texts or messages) as ours.

    The format states no strength and no capability: those given stand for all rows that have none
    of their own. Other columns are kept.

    Raises:
        ValueError: a column is missing, or no prompt can be told from the responses.
    """
    for name in ("chosen", "rejected"):
        if name not in row:
            raise ValueError(f"column {name} is missing")
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        prompt = _messages(row["prompt"], "user")
        sides = _messages(chosen, "assistant"), _messages(rejected, "assistant")
    else:
        prompt, *sides = _split(chosen, rejected)  # type: ignore[assignment]
    known = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}
    own = {key: value for key, value in row.items() if key not in known}
    return {"capability": capability, "strength": str(strength), **own, **known}


def of_helpsteer(row: Row, capability: str) -> dict[str, Any] | str:
    """A row of HelpSteer2-Preference or HelpSteer3 as ours, or why it is no preference.

    Raises:
        ValueError: a column is missing, or the scale is left.
    """
    prompt = _context(_first_of(row, "context", "prompt"))
    responses = [_first_of(row, f"response{n}", f"response_{n}") for n in (1, 2)]
    value = _first_of(row, "overall_preference", "preference_strength")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > max(HELPSTEER):
        raise ValueError(f"the preference is {value!r}, expected −3 to 3")
    if value == 0:
        return TIE
    first, second = (_messages(text, "assistant") for text in responses)
    found = {
        "prompt": prompt,
        "chosen": first if value < 0 else second,
        "rejected": second if value < 0 else first,
        "strength": str(HELPSTEER[abs(value)]),
        "capability": _DOMAINS.get(str(row.get("domain", "")).casefold(), capability),
    }
    return {**({"id": row["id"]} if "id" in row else {}), **found}


def _first_of(row: Row, *names: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise ValueError(f"column {' or '.join(names)} is missing")


def _messages(value: Any, role: str) -> list[Any]:
    """A text as one turn; messages as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _context(value: Any) -> list[Any]:
    """The dialog before the responses; HelpSteer2 writes earlier turns into one text."""
    if not isinstance(value, str):
        return list(value)
    first, *rest = _TURN.split(value)
    turns = [{"role": "user", "content": first}]
    for speaker, text in zip(rest[::2], rest[1::2], strict=True):
        turns.append({"role": speaker.lower(), "content": text})
    return turns


def _split(chosen: Any, rejected: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """The prompt that two dialogs share, and what follows it in each."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError("without a prompt, chosen and rejected must be messages")
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    if not shared:
        raise ValueError("chosen and rejected share no prompt")
    return list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])
