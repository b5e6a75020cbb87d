"""Batches of dialogues for training: grouping, order and padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from specport.quantize.text.dialogues import Dialogue

from specport.traffic.dialogues import weights_of

if TYPE_CHECKING:
    from torch import Tensor


def plan(
    texts: Sequence[Dialogue], epochs: float, batch_tokens: int, seed: int, processes: int = 1
) -> Iterator[list[list[int]]]:
    """Yield for each step the texts of each process.

    Texts of similar length share a batch, to save padding.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array([len(text.tokens) for text in texts])
    left = epochs
    while left > 0:
        order = rng.permutation(len(texts))
        order = order[: max(1, round(min(left, 1.0) * len(texts)))]
        order = order[np.argsort(lengths[order], kind="stable")]
        batches: list[list[int]] = [[]]
        for i in order:
            if batches[-1] and lengths[i] * (len(batches[-1]) + 1) > batch_tokens:
                batches.append([])
            batches[-1].append(int(i))
        groups = [batches[i : i + processes] for i in range(0, len(batches), processes)]
        full = [
            group for group in groups if len(group) == processes
        ]  # every process needs a batch in every step
        for index in rng.permutation(len(full)):
            yield full[index]
        left -= 1.0


def batch(texts: Sequence[Dialogue], device: Any) -> dict[str, Tensor]:
    """Return the tensors of a batch, padded on the right.

    rows, columns: [answer tokens] the places whose output predicts the answers' tokens.
    hidden:  [answer tokens, size] as in `Dialogue`, float32; only where all texts have it.
    weights: [answer tokens] of each of them; absent where all are equal.
    """
    ids, mask = padded([text.tokens for text in texts])
    arrays = {
        "ids": ids,
        "mask": mask,
        "rows": np.concatenate([np.full(len(t.tokens) - t.start, row) for row, t in enumerate(texts)]),
        "columns": np.concatenate([np.arange(t.start - 1, len(t.tokens) - 1) for t in texts]),
        "answer": np.concatenate([t.tokens[t.start :] for t in texts]).astype(np.int64),
        "top_ids": np.concatenate([t.top_ids for t in texts]).astype(np.int64),
        "top_probs": np.concatenate([t.top_probs for t in texts]).astype(np.float32),
    }
    states = [t.hidden for t in texts if t.hidden is not None]
    if texts and len(states) == len(texts):
        arrays["hidden"] = np.concatenate(states).astype(np.float32)
    if any(t.weights is not None for t in texts):
        arrays["weights"] = np.concatenate([weights_of(t) for t in texts])
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def padded(texts: Sequence[ArrayLike]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids [texts, longest], padded with zeros on the right, and the mask of the real tokens."""
    rows = [np.asarray(tokens, dtype=np.int64) for tokens in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask
