"""Mode `ivf`: rows stream by in the order of their scores; each probes the nearest clusters.

A row that counts lives in its own cluster alone, and a new row is compared with what lives in the
few clusters nearest to it. Suffixes: N rows, D dimensions, K clusters, B rows of a block, P probes.

    dedup_ivf(Rows(vectors_ND, earlier_ED), order, 0.95, "kept", probes=4, seed=0)
"""

import numpy as np
import torch

from posttrain.dedup.clusters import fit, homes, nearest
from posttrain.dedup.contract import Hits, Places, Removal, Rows, Rule
from posttrain.dedup.exact import dedup_exact
from posttrain.dedup.greedy import decide
from posttrain.dedup.products import ROUNDING_BAND, cast, filter_dtype, near

FEWEST_CLUSTERS = 16
BLOCK = 32768


def dedup_ivf(
    rows: Rows, order: Places, threshold: float, rule: Rule, probes: int, seed: int
) -> list[Removal]:
    """Removals in the given order, less the few whose pair lives in a cluster that was not probed.

    Args:
        rows: checked vectors; earlier ones count as kept before the first row.
        order: row numbers, best first; not all need be there.
        threshold: in (0, 1].
        rule: compare with kept rows, or with all rows before.
        probes: clusters that a row is compared with.
        seed: of the clusters.
    """
    num = len(rows.vectors_ND)
    names = np.concatenate([np.arange(num, len(rows)), order])
    count = min(len(names), max(FEWEST_CLUSTERS, round(len(names) ** 0.5)))
    centroids_KD = _apart(fit(rows, names, count, seed), threshold)
    index = _Index(rows, names, centroids_KD)
    index.add(np.arange(num, len(rows)))
    removals: list[Removal] = []
    for start in range(0, len(order), BLOCK):
        names_B = order[start : start + BLOCK]
        outside, inside = index.near(names_B, probes, threshold - ROUNDING_BAND)
        gone, counts_B = decide(names_B, outside, inside, rows, threshold, rule)
        removals += gone
        index.add(names_B[counts_B])
    return removals


def _apart(centroids_KD: torch.Tensor, threshold: float) -> torch.Tensor:
    """One centroid in place of several as near to each other as duplicates are.

    Thousands of near-equal rows draw many centroids; a row that probes a few of them would miss the
    one where the row that stays lives.
    """
    found = Rows(centroids_KD.numpy(), np.empty((0, centroids_KD.shape[1]), np.float32))
    removals = dedup_exact(found, np.arange(len(centroids_KD)), threshold, "kept")
    gone = np.zeros(len(centroids_KD), np.bool_)
    gone[[one.row for one in removals]] = True
    return centroids_KD[torch.from_numpy(~gone)]


class _Index:
    """The rows that count, cluster by cluster in one matrix with room for all of them."""

    def __init__(self, rows: Rows, names: Places, centroids_KD: torch.Tensor) -> None:
        self._rows, self._centroids_KD = rows, centroids_KD
        # A row's home, by name.
        self._home_N = np.empty(len(rows), np.int32)
        self._home_N[names] = homes(rows, names, centroids_KD)
        sizes_K = np.bincount(self._home_N[names], minlength=len(centroids_KD))
        self._start_K = np.concatenate([[0], np.cumsum(sizes_K)[:-1]])
        self._count_K = np.zeros(len(centroids_KD), np.int64)
        self._against_MD = torch.empty((len(names), rows.vectors_ND.shape[1]), dtype=filter_dtype())
        self._names_M = np.empty(len(names), np.int64)

    def add(self, names: Places) -> None:
        """Let rows count from now on."""
        for start in range(0, len(names), BLOCK):
            part = names[start : start + BLOCK]
            homes = self._home_N[part]
            by_home = np.argsort(homes, kind="stable")
            homes, part = homes[by_home], part[by_home]
            first = np.searchsorted(homes, homes)
            places = self._start_K[homes] + self._count_K[homes] + np.arange(len(part)) - first
            self._against_MD[torch.from_numpy(places)] = cast(self._rows.take(part))
            self._names_M[places] = part
            self._count_K += np.bincount(homes, minlength=len(self._count_K))

    def near(self, names_B: Places, probes: int, floor: float) -> tuple[Hits, Hits]:
        """Hits of a block with rows that count, by name, and within the block, by place."""
        vectors_BD = self._rows.take(names_B)
        block_BD = cast(vectors_BD)
        probed_BP = nearest(vectors_BD, self._centroids_KD, probes)
        pairs = np.argsort(probed_BP.ravel(), kind="stable")
        clusters, starts = np.unique(probed_BP.ravel()[pairs], return_index=True)
        homes_B = self._home_N[names_B]
        by_home = np.argsort(homes_B, kind="stable")
        outside, inside = [], []
        for number, cluster in enumerate(clusters):
            end = starts[number + 1] if number + 1 < len(starts) else len(pairs)
            asking = pairs[starts[number] : end] // probed_BP.shape[1]
            first, last = np.searchsorted(homes_B[by_home], [cluster, cluster + 1])
            living = by_home[first:last]
            start, count = self._start_K[cluster], self._count_K[cluster]
            against_MD = torch.cat(
                [self._against_MD[start : start + count], block_BD[torch.from_numpy(living)]]
            )
            their_names = np.concatenate([self._names_M[start : start + count], names_B[living]])
            found = near(
                block_BD[torch.from_numpy(asking)],
                names_B[asking],
                against_MD,
                their_names,
                self._rows,
                floor,
            )
            old = found.other_H < count
            outside.append(
                Hits(asking[found.row_H[old]], their_names[found.other_H[old]], found.cosine_H[old])
            )
            places = living[found.other_H[~old] - count]
            inside.append(Hits(asking[found.row_H[~old]], places, found.cosine_H[~old]))
        return Hits.joined(outside), Hits.joined(inside)
