"""A head on the hidden states of a toy model, small enough to check by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specport.core.ports import HeadChains
from support.toys.toy_model import ToyModel


class ToyHead:
    """The table of a noisier toy: the state is the last token, one-hot, as the target's hidden states say it.

    columns:  as in `HiddenHead`. together: the same.
    num_rows: rows of each call of `step` and of `draft`, one entry for each token of depth.
    """

    def __init__(
        self,
        target: ToyModel,
        noise: float = 0.4,
        columns: Sequence[int] | None = None,
        together: int = 1,
        **options: Any,
    ) -> None:
        self.table = ToyModel(target.vocab, noise=noise, **options).table
        self.layers = target.capabilities.hidden_layers
        self.columns = None if columns is None else tuple(columns)
        self.together = together
        self.num_rows: list[int] = []

    def begin(self, hidden: Mapping[int, np.ndarray]) -> np.ndarray:
        tokens = [(hidden[layer].argmax(axis=1) - layer) % len(self.table) for layer in self.layers]
        assert all((found == tokens[0]).all() for found in tokens)  # of one token each
        return self._states(tokens[0])

    def step(self, states: np.ndarray, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        self.num_rows.append(len(tokens))
        assert len(states) == len(tokens)
        logits = self.table[states.argmax(axis=1), list(tokens)]
        return logits if self.columns is None else logits[:, self.columns], self._states(tokens)

    def draft(self, states: np.ndarray, tokens: Sequence[int], depth: int) -> HeadChains:
        found, confidences = [], []
        for _ in range(depth):
            logits, states = self.step(states, tokens)
            best = logits.argmax(axis=1)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            confidences.append(weights.max(axis=1) / weights.sum(axis=1))
            tokens = best if self.columns is None else np.asarray(self.columns)[best]
            found.append(tokens)
        return HeadChains(np.stack(found, 1), np.stack(confidences, 1).astype(np.float32), states)

    def _states(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.eye(len(self.table), dtype=np.float32)[np.asarray(tokens)]
