"""Where a row comes from: the chain of rows, steps and decisions back to its prompt.

Reads published tables only; what a step decided stands in the rows' own columns.

    for link in chain_of(run, "a1b2c3/4"): ...
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.controller import Run
from posttrain.errors import BadInput
from posttrain.steps.manifest import check_sizes

_COLUMNS = (
    "capability source level model seed system_id finish_reason num_tokens score scores passed "
    "grade pass_rate quality difficulty decisions edits repeat strength batch choice annotator "
    "reason keeper cosine measure value ranks evidence step split mode"
).split()


def chain_of(run: Run, row_id: str) -> list[dict[str, Any]]:
    """Every published occurrence of a row and of its ancestors, in the order of the steps.

    Raises:
        BadInput: no published table holds the row.
    """
    occurrences = _occurrences(run)
    newest = len(run.plan.rounds)
    wanted: list[tuple[str, int]] = [(row_id, newest)]
    found: list[dict[str, Any]] = []
    seen: set[tuple[str, int]] = set()
    while wanted:
        one, limit = wanted.pop(0)
        known = [link for link in occurrences.get(one, ()) if link["round"] <= limit]
        if not known or (one, limit) in seen:
            continue
        seen.add((one, limit))
        # An id may stand in several rounds, where a prompt came back: the last one counts.
        last = max(link["round"] for link in known)
        for link in known:
            if link["round"] == last and link not in found:
                found.append(link)
                wanted += [(parent, _limit(link)) for parent in link["parents"]]
    if not found:
        raise BadInput(f"{row_id}: no published table of runs/{run.name} holds this row")
    order = {address: place for place, address in enumerate(run.steps)}
    return sorted(found, key=lambda link: (order[link["address"]], link["table"], link["id"]))


def _limit(link: Mapping[str, Any]) -> int:
    """The newest round that can hold a row's parents."""
    named = str(link["id"]).rpartition("round-")[2].partition("/")[0]
    return int(named) if named.isdigit() else int(link["round"])


def lines(chain: Sequence[Mapping[str, Any]]) -> list[str]:
    """The chain as text, oldest first."""
    text = []
    for link in chain:
        text.append(f"{link['address']}/{link['table']}  {link['id']}  ({link['made']})")
        for key, value in link["columns"].items():
            text.append(f"    {key}: {json.dumps(value, ensure_ascii=False)}")
        for turn in link["text"]:
            text.append(f"    {turn}")
    return text


def _occurrences(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Row id → where it stands."""
    found: dict[str, list[dict[str, Any]]] = {}
    for step in run.steps.values():
        manifest = run.folder.manifest(step)
        if manifest is None:
            continue
        check_sizes(run.folder.path(step), manifest)
        for table in manifest.rows:
            path = run.folder.path(step) / f"{table}.jsonl"
            for row in _rows(path):
                link = {
                    "id": row["id"],
                    "address": step.address,
                    "table": path.name,
                    "round": step.round,
                    "made": f"step {manifest.fingerprint[:8]}, {manifest.finished}",
                    "parents": list(row.get("parents", ())),
                    "columns": {k: row[k] for k in _COLUMNS if k in row},
                    "text": _text(row),
                }
                found.setdefault(str(row["id"]), []).append(link)
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if "id" in row:
                yield row


def _text(row: Mapping[str, Any]) -> list[str]:
    """The row's turns, a line each."""
    text = []
    for key in ("prompt", "messages", "chosen", "rejected", "edited", "a", "b"):
        turns = row.get(key)
        if isinstance(turns, list):
            text += [f"{key} {turn['role']}: {turn['content']!r}" for turn in turns]
    return text
