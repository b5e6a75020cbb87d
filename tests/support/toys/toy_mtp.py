"""A module for multi-token prediction of a toy model, small enough to check by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specport.core.ports import HEAD_INPUT, Row, StepOutput
from support.toys.toy_model import ToyModel


class ToyMtp(ToyModel):
    """The table of a noisier toy. An entry reads a token, and a state that says the token before it.

    States are what a toy target gives for HEAD_INPUT, and what this one gives. Each is compared with the
    entry before it in the cache, so that no state can come to another token than its own.
    """

    def __init__(self, target: ToyModel, noise: float = 0.4, **options: Any) -> None:
        super().__init__(target.vocab, noise=noise, hidden_layers=(HEAD_INPUT,), **options)
        self.num_states = 0

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            assert row.states is not None and np.shape(row.states) == (len(row.block), self.vocab)
            assert not (set(np.unique(row.states)) - {0.0, 1.0})
            self.num_states += len(row.block)
        return super().step(rows)

    def _logits(self, row: Row, node: int) -> np.ndarray:
        assert row.states is not None
        before = (int(np.asarray(row.states)[node].argmax()) - HEAD_INPUT) % self.vocab
        cells, block = row.handle.cells, row.block
        seen = range(node) if block.visible is None else np.flatnonzero(block.visible[node]).tolist()
        nearest = max((j for j in seen if j != node), key=lambda j: (block.positions[j], j), default=None)
        if nearest is not None or cells:
            last = block.tokens[nearest] if nearest is not None else cells[-1].token
            assert last == before, "a state of another token"
        return self.table[before, block.tokens[node] % self.vocab]
