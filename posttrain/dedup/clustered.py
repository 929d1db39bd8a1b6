"""Mode `clustered`, the paper's: k-means, then greedy inside each cluster (section 4.2.3).

A pair on two sides of a border is missed; each further pass draws other borders for what is left.

    dedup_clustered(Rows(vectors_ND, earlier_ED), order, 0.95, "kept", passes=1, seed=0)
"""

import numpy as np

from posttrain.dedup.clusters import fit, homes
from posttrain.dedup.contract import Places, Removal, Rows, Rule
from posttrain.dedup.exact import dedup_exact

ROWS_A_CLUSTER = 500


def dedup_clustered(
    rows: Rows, order: Places, threshold: float, rule: Rule, passes: int, seed: int
) -> list[Removal]:
    """Removals, pass by pass; inside a pass in the given order.

    Args:
        rows: checked vectors; earlier ones count as kept and are compared with in every pass.
        order: row numbers, best first; not all need be there.
        threshold: in (0, 1].
        rule: compare with kept rows, or with all rows of the cluster before.
        passes: how often the survivors are clustered afresh.
        seed: of the clusters.
    """
    num = len(rows.vectors_ND)
    removals: list[Removal] = []
    left = order
    for number in range(passes):
        names = np.concatenate([left, np.arange(num, len(rows))])
        count = max(1, len(names) // ROWS_A_CLUSTER)
        home_M = homes(rows, names, fit(rows, names, count, seed + number))
        found: list[Removal] = []
        for cluster in range(count):
            members = names[home_M == cluster]
            earlier = members[members >= num] - num
            part = Rows(rows.vectors_ND, rows.earlier_ED[earlier])
            found += [
                one
                if one.keeper < num
                else one._replace(keeper=num + int(earlier[one.keeper - num]))
                for one in dedup_exact(part, members[members < num], threshold, rule)
            ]
        rank = np.empty(num, np.int64)
        rank[order] = np.arange(len(order))
        removals += sorted(found, key=lambda one: int(rank[one.row]))
        left = left[~np.isin(left, [one.row for one in found])]
    return removals
