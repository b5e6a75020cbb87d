"""Group vectors of voices by speaker, with a given or an estimated number of speakers.

Spectral clustering. The number of neighbours and of speakers are those with the clearest gap among the
eigenvalues. Source: Park et al., Auto-Tuning Spectral Clustering for Speaker Diarization Using Normalized
Maximum Eigengap (2019).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST = 300  # vectors whose graph is made; the others go to the nearest group
_TRIES = 12  # numbers of neighbours
_NEAR = 4  # vectors to each side that come from partly the same sound
_APART = 0.06  # cosine similarity by which one's own group must be nearer than the next, for several to exist
_STARTS = 10  # of k-means

Array = NDArray[np.float32]
Labels = NDArray[np.int64]


def cluster(vectors: Array, count: int | None = None, most: int = 8) -> Labels:
    """Return the group of each vector, 0 and up. Vectors have length 1 and are in order of time.

    count: number of groups; None = estimated, at most `most`. There are never more groups than vectors, and
           none is empty.
    """
    total = len(vectors)
    if total == 0:
        return np.zeros(0, np.int64)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST)).round().astype(int))
    labels = _spectral(vectors[chosen], count, most)
    if count is None and _margin(vectors[chosen], labels, _NEAR if len(chosen) == total else 1) < _APART:
        labels = np.zeros_like(labels)
    if len(chosen) == total:
        return labels
    return numbered(np.asarray((vectors @ centroids(vectors[chosen], labels).T).argmax(axis=1), np.int64))


def centroids(vectors: Array, labels: Labels) -> Array:
    """Return the mean direction [groups, size] of each group."""
    means = np.stack([vectors[labels == group].mean(axis=0) for group in range(int(labels.max()) + 1)])
    found: Array = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-8)
    return found


def _margin(vectors: Array, labels: Labels, near: int) -> float:
    """Return by how much vectors are more like others of their group than like the next group, on average.

    Others less than `near` places away are like them anyway, and do not count.
    """
    places = np.arange(len(labels))
    far = np.abs(places[:, None] - places) >= near
    likeness = (vectors @ vectors.T) * far
    member = (labels[:, None] == np.arange(int(labels.max()) + 1)).astype(np.float32)
    counts = far @ member
    means = np.where(counts > 0, likeness @ member / np.maximum(counts, 1), np.nan)
    own = means[places, labels].copy()
    means[places, labels] = np.nan
    usable = ~np.isnan(own) & ~np.isnan(means).all(axis=1)
    if not usable.any():
        return 0.0
    return float(np.mean(own[usable] - np.nanmax(means[usable], axis=1)))


def _spectral(vectors: Array, count: int | None, most: int) -> Labels:
    total = len(vectors)
    if count is not None and count >= total:
        return np.arange(total, dtype=np.int64)
    if count == 1 or total < 3:
        return np.zeros(total, np.int64)
    order = np.argsort(-(vectors @ vectors.T), axis=1)
    best: tuple[float, int, NDArray[np.float64]] | None = None
    for neighbours in np.unique(np.linspace(2, max(3, total // 2), _TRIES).astype(int)):
        values, directions = _eigen(order[:, :neighbours])
        gaps = np.diff(values[: most + 1])
        groups = int(gaps.argmax()) + 1 if count is None else count
        gap = float(gaps[groups - 1] if groups <= len(gaps) else 0.0) / (float(values[-1]) + 1e-9)
        # Few neighbours and a clear gap: a sparse graph that still falls apart rightly.
        ratio = neighbours / total / (gap + 1e-9)
        if best is None or ratio < best[0]:
            best = (ratio, groups, directions[:, :groups])
    assert best is not None
    return _k_means(best[2], best[1])


def _eigen(nearest: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues, ascending, and eigenvectors of the Laplacian of a graph of nearest neighbours."""
    total = len(nearest)
    graph = np.zeros((total, total))
    graph[np.arange(total)[:, None], nearest] = 1.0
    graph = (graph + graph.T) / 2
    values, vectors = np.linalg.eigh(np.diag(graph.sum(axis=1)) - graph)
    return values, vectors


def _k_means(points: NDArray[np.float64], groups: int) -> Labels:
    """Return the groups of k-means, numbered by their first point. The same points give the same groups."""
    random = np.random.default_rng(0)
    best: tuple[float, Labels] | None = None
    for _ in range(_STARTS):
        centres = points[random.choice(len(points), groups, replace=False)]
        labels = np.zeros(len(points), np.int64)
        for _ in range(50):
            distances = ((points[:, None] - centres[None]) ** 2).sum(axis=-1)
            new = distances.argmin(axis=1)
            for group in range(groups):
                if (new == group).any():
                    centres[group] = points[new == group].mean(axis=0)
            if (new == labels).all():
                break
            labels = new
        error = float(((points - centres[labels]) ** 2).sum())
        if best is None or error < best[0]:
            best = (error, labels)
    assert best is not None
    return numbered(best[1])


def numbered(labels: Labels) -> Labels:
    """Return labels as 0, 1, ... in the order in which they appear."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    found: Labels = rank[inverse]
    return found
