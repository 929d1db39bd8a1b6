"""Deduplication: equal dialogs by hash, near-equal ones by the cosine of their vectors (4.2.3).

Knows rows' texts and unit vectors; knows no embedder and no scores. Never forms connected
components: a row goes because of one named row, not because of a chain.

    semantic_dedup(vectors_ND, order=range(len(vectors_ND)), threshold=0.95)
"""

from posttrain.dedup.contract import Removal
from posttrain.dedup.equal import dialog_hash, exact_duplicates
from posttrain.dedup.semantic import semantic_dedup

__all__ = ["Removal", "dialog_hash", "exact_duplicates", "semantic_dedup"]
