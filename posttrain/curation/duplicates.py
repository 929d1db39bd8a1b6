"""Duplicates: equal dialogs, shared wording, and dialogs that mean the same in one capability.

Knows which row comes first (`Row.rank`) and how much a capability may lose; the comparing is done
by `posttrain.dedup`, the vectors come from the tools.

    drop_near(rows, Dedup(threshold=0.95), tools)
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from posttrain.curation.contract import CurationTools, Dropped, Row, StepResult, drop
from posttrain.dedup import Removal, semantic_dedup
from posttrain.dedup.equal import equal_rows
from posttrain.dedup.minhash import near_copies, shingles
from posttrain.dedup.prefixes import SharedPrefixes
from posttrain.dedup.words import Hashes
from posttrain.embedding import Embedded, dialog_text
from posttrain.errors import BadInput, StepFailed
from posttrain.settings.pipeline import Dedup, MinHash

NEAR, COPY = "semantic_dedup", "minhash"
TEXTS_AT_ONCE = 8192
"""Texts that are in memory together while they are embedded."""
LABELS: Mapping[str, Callable[[Row], str | None]] = {
    "capability": lambda row: row.capability,
    "source": lambda row: row.source,
    "topic": lambda row: None if row.topic is None else row.topic[0],
}
"""By what losses are told; a row has a topic behind the step topics."""

Earlier = Literal["first", "rank"]


def drop_equal(rows: Sequence[Row]) -> StepResult:
    """Keep the best of equal dialogs, whatever their capability."""
    ranked = sorted(rows, key=Row.rank)
    return _split(
        "exact_duplicates", ranked, equal_rows([r.dialog for r in ranked]), "equal dialog"
    )


def drop_copies(
    rows: Sequence[Row], settings: MinHash, keys_NB: Hashes, earlier: Earlier
) -> StepResult:
    """Keep the best of dialogs of one capability that share most of their wording.

    Args:
        rows: of any number; `keys_NB` holds the sketch of each under its number.
        settings: words of a run and the similarity.
        keys_NB: see `posttrain.dedup.minhash`.
        earlier: whether rows of earlier rounds come first.
    """
    result = StepResult([], [], {}, {})
    for _, ranked in _by_capability(rows, earlier):
        recent = lru_cache(1024)(_Shingles(ranked, settings.ngram))
        own_KB = keys_NB[[row.number for row in ranked]]
        removals = near_copies(own_KB, range(len(ranked)), recent, settings.threshold)
        part = _split(COPY, ranked, removals, "shared wording", measure="jaccard")
        result.kept.extend(part.kept)
        result.dropped.extend(part.dropped)
    return result


class _Shingles:
    """The shingles of a row, by its place."""

    def __init__(self, rows: Sequence[Row], ngram: int) -> None:
        self._rows, self._ngram = rows, ngram

    def __call__(self, place: int) -> Hashes:
        return shingles(dialog_text(self._rows[place].example.messages), self._ngram)


def drop_near(rows: Sequence[Row], settings: Dedup, tools: CurationTools) -> StepResult:
    """Greedily keep the best of near-equal dialogs; only rows of one capability are compared.

    Every removal names its keeper and the cosine (section 4.2.3).

    Raises:
        BadInput: no embedder among the tools, or vectors that do not fit the texts.
        StepFailed: a capability, a source or a topic loses more than `max_loss` of its rows.
    """
    if tools.embed is None:
        raise BadInput("semantic_dedup is in the order, but no embedder was given")
    result = StepResult([], [], {}, {})
    truncated: Counter[str] = Counter()
    for capability, ranked in _by_capability(rows, settings.earlier):
        shared = SharedPrefixes()
        for row in ranked:
            shared.add(dialog_text(row.example.messages))
        embedded = embedded_rows(ranked, tools.embed, shared)
        removals = semantic_dedup(
            embedded.vectors_ND,
            range(len(ranked)),
            settings.threshold,
            settings.rule,
            mode=settings.mode,
            block=settings.block,
            probes=settings.probes,
            passes=settings.passes,
        )
        flags = embedded.truncated_N.tolist()
        part = _split(NEAR, ranked, removals, "near duplicate", "cosine", flags)
        result.kept.extend(part.kept)
        result.dropped.extend(part.dropped)
        truncated[capability] = sum(flags)
    notes = {label: _losses(rows, result, label_of) for label, label_of in LABELS.items()}
    _check_losses(notes, settings)
    return result._replace(notes={**notes, "truncated": dict(truncated)})


def _by_capability(rows: Sequence[Row], earlier: Earlier) -> list[tuple[str, list[Row]]]:
    """The rows of each capability, in the order in which they are kept."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _before(row, earlier)):
        groups[row.capability].append(row)
    return sorted(groups.items())


def _before(row: Row, earlier: Earlier) -> tuple[object, ...]:
    """Sort key: people's rows, those of earlier rounds if they seed what is kept, then by rank."""
    return (not row.human, not (row.earlier and earlier == "first"), row.rank())


def _losses(
    rows: Sequence[Row], result: StepResult, label_of: Callable[[Row], str | None]
) -> dict[str, dict[str, float]]:
    """For each value of a label: rows that were compared, and the share that went."""
    compared = Counter(label_of(row) for row in rows)
    gone = Counter(label_of(one.row) for one in result.dropped)
    return {
        value: {"rows": count, "loss": gone[value] / count}
        for value, count in sorted((v, c) for v, c in compared.items() if v is not None)
    }


def _check_losses(notes: Mapping[str, Mapping[str, Mapping[str, float]]], settings: Dedup) -> None:
    for label, values in notes.items():
        for value, found in values.items():
            counts = label == "capability" or found["rows"] >= settings.least_rows
            if counts and found["loss"] > settings.max_loss:
                raise StepFailed(
                    f"semantic_dedup: {label} {value} loses {found['loss']:.1%} of its rows at "
                    f"threshold {settings.threshold}, more than dedup.max_loss "
                    f"{settings.max_loss:.0%}; short, formulaic texts look alike to an embedder: "
                    "raise dedup.threshold, or max_loss if these rows really repeat each other"
                )


def embedded_rows(
    rows: Sequence[Row],
    embed: Callable[[Sequence[str]], Embedded],
    shared: SharedPrefixes | None = None,
) -> Embedded:
    """Vectors of rows, whose texts are in memory a part at a time, less what many begin with."""
    parts = []
    for start in range(0, len(rows), TEXTS_AT_ONCE):
        part = rows[start : start + TEXTS_AT_ONCE]
        texts = [dialog_text(row.example.messages) for row in part]
        texts = [shared.without(text) for text in texts] if shared else texts
        embedded = embed(texts)
        if not len(embedded.vectors_ND) == len(embedded.truncated_N) == len(texts):
            raise BadInput(
                f"the embedder gave {len(embedded.vectors_ND)} vectors for {len(texts)} texts"
            )
        parts.append(embedded)
    vectors, truncated = ([part[i] for part in parts] for i in (0, 1))
    return Embedded(np.concatenate(vectors), np.concatenate(truncated))


def _split(
    step: str,
    ranked: Sequence[Row],
    removals: Sequence[Removal],
    reason: str,
    measure: str = "cosine",
    truncated: Sequence[bool] = (),
) -> StepResult:
    """The rows that stay, with how many they stand for, and the others with their keepers."""
    gone = {removal.row: removal for removal in removals}
    stands_for = Counter(removal.keeper for removal in removals)
    kept: list[Row] = []
    dropped: list[Dropped] = []
    for index, row in enumerate(ranked):
        removal = gone.get(index)
        if removal is None:
            others = stands_for[index]
            kept.append(row.decide(step, f"kept over {others}" if others else "no other like it"))
            continue
        extra = {"keeper": ranked[removal.keeper].id, measure: round(removal.similarity, 6)}
        if truncated and truncated[index]:
            extra["truncated"] = True
        dropped.append(drop(row, step, reason, **extra))
    return StepResult(kept, dropped)
