"""Clusters of vectors by k-means, and which of them a row is near to.

Knows vectors and centroids; no duplicates.

    centroids_KD = fit(rows, names, num_clusters=316, seed=0)
    nearest(vectors_BD, centroids_KD, probes=8)
"""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from posttrain.dedup.contract import Places, Rows, Vectors

ROWS_A_CLUSTER = 64
"""Rows that the centroids are fitted on, for each cluster: more hardly moves them."""
ITERATIONS = 10
AT_ONCE = 8192
"""Rows whose vectors are in memory together while their clusters are found."""


def fit(rows: Rows, names: Places, num_clusters: int, seed: int) -> torch.Tensor:
    """Centroids of length 1, shape (K, D), of a sample of the named rows."""
    rng = np.random.default_rng(seed)
    size = min(len(names), ROWS_A_CLUSTER * num_clusters)
    sample_SD = rows.take(np.sort(rng.choice(names, size, replace=False)))
    start_KD = sample_SD[rng.choice(size, num_clusters, replace=False)]
    kmeans = KMeans(num_clusters, init=start_KD, n_init=1, max_iter=ITERATIONS, tol=0.0)
    # Threads add up their parts in the order they end in, and the last bits would change with it.
    with threadpool_limits(1, "openmp"), warnings.catch_warnings():
        # Fewer different rows than clusters are nothing to warn of.
        warnings.simplefilter("ignore", ConvergenceWarning)
        centroids_KD = torch.from_numpy(kmeans.fit(sample_SD).cluster_centers_)
    return torch.nn.functional.normalize(centroids_KD.float(), dim=1)


def nearest(vectors_BD: Vectors, centroids_KD: torch.Tensor, probes: int) -> Places:
    """Numbers of the nearest clusters, nearest first, shape (B, probes)."""
    products_BK = torch.from_numpy(vectors_BD) @ centroids_KD.T
    return products_BK.topk(min(probes, len(centroids_KD)), dim=1).indices.numpy()


def homes(rows: Rows, names: Places, centroids_KD: torch.Tensor) -> Places:
    """The nearest cluster of each named row."""
    found = np.empty(len(names), np.int64)
    for start in range(0, len(names), AT_ONCE):
        part = rows.take(names[start : start + AT_ONCE])
        found[start : start + AT_ONCE] = nearest(part, centroids_KD, 1)[:, 0]
    return found
