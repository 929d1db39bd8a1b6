"""Greedy soups: members join an average only where it measures no worse (arXiv 2203.05482).

Knows members by name and a measure; what is measured, the caller knows. Measures are remembered in
a file, so a soup that was killed goes on.

    greedy_soup({"a": Path("dpo-a"), "b": Path("dpo-b")}, pass_rate, Path("work")).members
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from posttrain.averaging.mean import average_models
from posttrain.errors import GuardFailed
from posttrain.tables import read_json, write_json

MEASURES = "measures.json"


@dataclass(frozen=True)
class Soup:
    """What a greedy soup is made of."""

    members: tuple[str, ...]
    """In the order they joined."""
    measures: dict[str, float]
    """What each member and each tried mixture (`a+b`) measured; higher is better."""


def greedy_soup(
    members: Mapping[str, Path], measure: Callable[[str, Path], float], work: Path
) -> Soup:
    """Start with the best member; try the others, best first, and keep what does not measure worse.

    Equal measures are taken in the order of the members' names.

    Args:
        members: model folders by name.
        measure: of a mixture's name and folder on development data, higher is better.
        work: where mixtures are made and measures remembered.

    Raises:
        GuardFailed: a measure is no number.
        BadInput, Damaged: see `average_models`.
    """
    known = read_json(work / MEASURES) if (work / MEASURES).is_file() else {}

    def measured(names: tuple[str, ...]) -> float:
        label = "+".join(names)
        if label not in known:
            folder = members[names[0]]
            if len(names) > 1:
                folder = work / "mixture"
                shutil.rmtree(folder, ignore_errors=True)
                average_models([members[name] for name in names], folder)
            known[label] = measure(label, folder)
            write_json(work / MEASURES, known)
        value = float(known[label])
        if value != value:
            raise GuardFailed(f"the measure of {label} is no number")
        return value

    work.mkdir(parents=True, exist_ok=True)
    ranked = sorted(members, key=lambda name: (-measured((name,)), name))
    chosen: tuple[str, ...] = (ranked[0],)
    best = measured(chosen)
    for name in ranked[1:]:
        value = measured((*chosen, name))
        if value >= best:
            chosen, best = (*chosen, name), value
    shutil.rmtree(work / "mixture", ignore_errors=True)
    return Soup(chosen, {label: float(value) for label, value in known.items()})
