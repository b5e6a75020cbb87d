"""Top-k of many rows, brought to the host in one small transfer."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array
from numpy.typing import NDArray

from specport.core.arrays import Array, to_host

_BLOCK = 256  # entries of a row per block maximum


def largest(scores: Array, k: int) -> NDArray[np.int64]:
    """Return [n, min(k, vocab)] the ids of each row's largest entries, largest first.

    scores: [n, vocab].
    """
    k = min(k, scores.shape[1])
    if is_numpy_array(scores):
        return _largest_on_host(scores, k)
    xp = array_namespace(scores)
    if is_torch_array(scores):
        if str(device(scores)) == "cpu":  # torch.topk takes 25 times as long there; numpy has no bfloat16
            return _largest_on_host(to_host(xp.astype(scores, xp.float32, copy=False)), k)
        # The standard has no top-k.
        return to_host(xp.topk(scores, k, dim=-1).indices).astype(np.int64)
    ids = xp.arange(scores.shape[1], device=device(scores))
    columns = []
    for _ in range(k):
        best = xp.argmax(scores, axis=-1, keepdims=True)  # [n, 1]
        columns.append(best)
        scores = xp.where(ids == best, -xp.inf, scores)
    return to_host(xp.concat(columns, axis=1)).astype(np.int64)


def _largest_on_host(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return `largest` on the host.

    The k largest entries lie in the k blocks with the largest maxima, or behind the last whole block: a tenth
    of the time of a partition of the whole row.
    """
    num_blocks = scores.shape[1] // _BLOCK
    columns: NDArray[np.int64] | None = None  # [n, few] original columns of the reduced `scores`
    if num_blocks > 2 * k:
        full = num_blocks * _BLOCK
        maxima = scores[:, :full].reshape(len(scores), num_blocks, _BLOCK).max(axis=2)
        blocks = np.sort(np.argpartition(-maxima, k - 1, axis=1)[:, :k], axis=1)
        inside = (blocks[:, :, None] * _BLOCK + np.arange(_BLOCK)).reshape(len(scores), -1)
        end = np.broadcast_to(np.arange(full, scores.shape[1]), (len(scores), scores.shape[1] - full))
        columns = np.concatenate([inside, end], axis=1)
        scores = np.take_along_axis(scores, columns, axis=1)
    few = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, few, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(few, order, axis=1)
    return best if columns is None else np.take_along_axis(columns, best, axis=1)
