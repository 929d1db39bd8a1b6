"""Duplicates: equal dialogs, and dialogs that mean the same inside one capability.

Knows which row comes first (`Row.rank`) and how much a capability may lose; the comparing is done
by `posttrain.dedup`, the vectors come from the tools.

    drop_near(rows, Dedup(threshold=0.95), tools)
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from posttrain.curation.contract import CurationTools, Dropped, Row, StepResult, drop
from posttrain.dedup import Removal, exact_duplicates, semantic_dedup
from posttrain.embedding import Embedded, dialog_text
from posttrain.errors import BadInput, StepFailed
from posttrain.rows import Example
from posttrain.settings.pipeline import Dedup

NEAR = "semantic_dedup"


def drop_equal(rows: Sequence[Row], tools: CurationTools) -> StepResult:
    """Keep the best of equal dialogs, whatever their capability."""
    ranked = sorted(rows, key=Row.rank)
    removals = exact_duplicates([row.example for row in ranked], tools.earlier)
    return _split("exact_duplicates", ranked, removals, tools.earlier, "equal dialog")


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
    for row in rows:
        groups[row.example.capability].append(row)
    earlier = [e for e in tools.earlier if e.capability in groups]
    texts = [dialog_text(e.messages) for e in [*(row.example for row in rows), *earlier]]
    vectors_by_text = _vectors(texts, tools.embed(texts))
    result = StepResult([], [], {}, {})
    notes: dict[str, dict[str, float]] = {}
    for capability, members in sorted(groups.items()):
        ranked = sorted(members, key=Row.rank)
        before = [e for e in earlier if e.capability == capability]
        found = [vectors_by_text[dialog_text(row.example.messages)] for row in ranked]
        old = [vectors_by_text[dialog_text(e.messages)][0] for e in before]
        removals = semantic_dedup(
            np.stack([vector for vector, _ in found]),
            range(len(ranked)),
            settings.threshold,
            settings.rule,
            earlier_ED=np.stack(old) if old else None,
            block=settings.block,
        )
        loss = len(removals) / len(ranked)
        _check_loss(capability, loss, settings)
        truncated = [cut for _, cut in found]
        part = _split(NEAR, ranked, removals, before, "near duplicate", truncated)
        result.kept.extend(part.kept)
        result.dropped.extend(part.dropped)
        notes[capability] = {"loss": loss, "truncated": sum(truncated)}
    return result._replace(notes=notes)


def _vectors(
    texts: Sequence[str], embedded: Embedded
) -> dict[str, tuple["np.ndarray[tuple[int], np.dtype[np.float32]]", bool]]:
    if len(embedded.vectors_ND) != len(texts) or len(embedded.truncated_N) != len(texts):
        raise BadInput(
            f"the embedder gave {len(embedded.vectors_ND)} vectors for {len(texts)} texts"
        )
    pairs = zip(embedded.vectors_ND, embedded.truncated_N, strict=True)
    return {text: (v, bool(cut)) for text, (v, cut) in zip(texts, pairs, strict=True)}


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
    truncated: Sequence[bool] = (),
) -> StepResult:
    """The rows that stay, with how many they stand for, and the others with their keepers."""
    ids = [row.example.id for row in ranked] + [e.id for e in earlier]
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
        extra = {"keeper": ids[removal.keeper], "cosine": round(removal.similarity, 6)}
        if truncated and truncated[index]:
            extra["truncated"] = True
        dropped.append(drop(row, step, reason, **extra))
    return StepResult(kept, dropped)
