"""Duplicates: equal dialogs, shared wording, and dialogs that mean the same in one capability.

Knows which row comes first (`Row.rank`) and how much a capability may lose; the comparing is done
by `posttrain.dedup`, the vectors come from the tools.

    drop_near(rows, Dedup(threshold=0.95), tools)
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from posttrain.curation.contract import CurationTools, Dropped, Row, StepResult, drop
from posttrain.dedup import Removal, dialog_hash, semantic_dedup
from posttrain.dedup.equal import equal_rows
from posttrain.dedup.minhash import Hashes, near_copies, shingles
from posttrain.embedding import Embedded, dialog_text
from posttrain.errors import BadInput, StepFailed
from posttrain.rows import Example
from posttrain.settings.pipeline import Dedup, MinHash

NEAR, COPY = "semantic_dedup", "minhash"
TEXTS_AT_ONCE = 8192
"""Texts that are in memory together while they are embedded."""


def drop_equal(rows: Sequence[Row], tools: CurationTools) -> StepResult:
    """Keep the best of equal dialogs, whatever their capability."""
    ranked = sorted(rows, key=Row.rank)
    hashes = [row.dialog for row in ranked]
    removals = equal_rows(hashes, [dialog_hash(example) for example in tools.earlier])
    return _split("exact_duplicates", ranked, removals, tools.earlier, "equal dialog")


def drop_copies(rows: Sequence[Row], settings: MinHash, keys_NB: Hashes) -> StepResult:
    """Keep the best of dialogs of one capability that share most of their wording.

    Args:
        rows: of any number; `keys_NB` holds the sketch of each under its number.
        settings: words of a run and the similarity.
        keys_NB: see `posttrain.dedup.minhash`.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=Row.rank):
        groups[row.capability].append(row)
    result = StepResult([], [], {}, {})
    for _, ranked in sorted(groups.items()):
        recent = lru_cache(1024)(_Shingles(ranked, settings.ngram))
        own_KB = keys_NB[[row.number for row in ranked]]
        removals = near_copies(own_KB, range(len(ranked)), recent, settings.threshold)
        part = _split(COPY, ranked, removals, (), "shared wording", measure="jaccard")
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
        StepFailed: a capability loses more than `max_loss` of its rows.
    """
    if tools.embed is None:
        raise BadInput("semantic_dedup is in the order, but no embedder was given")
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=Row.rank):
        groups[row.capability].append(row)
    result = StepResult([], [], {}, {})
    notes: dict[str, dict[str, float]] = {}
    for capability, ranked in sorted(groups.items()):
        before = [e for e in tools.earlier if e.capability == capability]
        embedded = embedded_rows([*ranked, *before], tools.embed)
        num = len(ranked)
        removals = semantic_dedup(
            embedded.vectors_ND[:num],
            range(num),
            settings.threshold,
            settings.rule,
            earlier_ED=embedded.vectors_ND[num:],
            mode=settings.mode,
            block=settings.block,
            probes=settings.probes,
            passes=settings.passes,
        )
        loss = len(removals) / num
        _check_loss(capability, loss, settings)
        truncated = embedded.truncated_N[:num].tolist()
        part = _split(NEAR, ranked, removals, before, "near duplicate", "cosine", truncated)
        result.kept.extend(part.kept)
        result.dropped.extend(part.dropped)
        notes[capability] = {"loss": loss, "truncated": sum(truncated)}
    return result._replace(notes=notes)


def embedded_rows(
    rows: Sequence[Row | Example], embed: Callable[[Sequence[str]], Embedded]
) -> Embedded:
    """Vectors of rows, whose texts are in memory a part at a time."""
    parts = []
    for start in range(0, len(rows), TEXTS_AT_ONCE):
        part = rows[start : start + TEXTS_AT_ONCE]
        examples = [row.example if isinstance(row, Row) else row for row in part]
        texts = [dialog_text(example.messages) for example in examples]
        embedded = embed(texts)
        if not len(embedded.vectors_ND) == len(embedded.truncated_N) == len(texts):
            raise BadInput(
                f"the embedder gave {len(embedded.vectors_ND)} vectors for {len(texts)} texts"
            )
        parts.append(embedded)
    vectors, truncated = ([part[i] for part in parts] for i in (0, 1))
    return Embedded(np.concatenate(vectors), np.concatenate(truncated))


def _check_loss(capability: str, loss: float, settings: Dedup) -> None:
    if loss > settings.max_loss:
        raise StepFailed(
            f"semantic_dedup: {capability} loses {loss:.1%} of its rows at threshold "
            f"{settings.threshold}, more than dedup.max_loss {settings.max_loss:.0%}; short, "
            "formulaic texts look alike to an embedder: raise dedup.threshold, or max_loss if "
            "these rows really repeat each other"
        )


def _split(
    step: str,
    ranked: Sequence[Row],
    removals: Sequence[Removal],
    earlier: Sequence[Example],
    reason: str,
    measure: str = "cosine",
    truncated: Sequence[bool] = (),
) -> StepResult:
    """The rows that stay, with how many they stand for, and the others with their keepers."""
    ids = [row.id for row in ranked] + [e.id for e in earlier]
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
        extra = {"keeper": ids[removal.keeper], measure: round(removal.similarity, 6)}
        if truncated and truncated[index]:
            extra["truncated"] = True
        dropped.append(drop(row, step, reason, **extra))
    return StepResult(kept, dropped)
