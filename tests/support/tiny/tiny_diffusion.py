"""A tiny transformer of random weights in float64, whose rows may have any mask: a toy of diffusion models.

It is exact: how tokens are split over steps changes logits by rounding of float64 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specport.core.ports import Block, Capabilities, CheckedModel, Refusal, Row, StepOutput
from specport.core.ports.checked import CachedSequence
from specport.diffusion.ports import DiffusionModel
from specport.models.kinds.diffusion import Context, DiffusionFacts

Floats = NDArray[np.float64]


@dataclass(kw_only=True)
class Handle(CachedSequence):
    """keys, values: of each layer, [cached and pending rows, width]."""

    keys: list[Floats] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)
    closed: bool = False


class TinyTransformer(CheckedModel[Handle]):
    """num_open: handles that are open. num_rows: of all steps. widest: most rows of a step with a mask."""

    def __init__(
        self, layers: int = 2, vocab: int = 20, width: int = 16, seed: int = 0, noise: float = 0.0,
        sharpness: float = 3.0, max_context: int = 256, widest: int = 64,
    ) -> None:  # fmt: skip
        rng, own = np.random.default_rng(seed), np.random.default_rng(seed + 1000)

        def weight(rows: int, columns: int) -> Floats:
            return (rng.normal(size=(rows, columns)) + noise * own.normal(size=(rows, columns))) / np.sqrt(
                rows
            )

        self._embedding = weight(vocab, width) * np.sqrt(vocab)
        self._position = weight(max_context, width) * np.sqrt(max_context)
        self._layers = [[weight(width, width) for _ in range(4)] for _ in range(layers)]
        self._head = weight(width, vocab) * sharpness
        self.vocab_size, self.max_context, self._widest = vocab, max_context, widest
        self.capabilities = Capabilities(visibility="any", batch=True, exact=True, gather=True)
        self.num_open, self.num_rows = 0, 0

    def room(self, handle: Handle | None = None) -> int:
        return self.max_context - (handle.length if handle else 0)

    def open_checked(self, capacity: int) -> Handle:
        self.num_open += 1
        empty = np.zeros((0, self._head.shape[0]))
        return Handle(keys=[empty] * len(self._layers), values=[empty] * len(self._layers))

    def fork_checked(self, handle: Handle, length: int) -> Handle:
        raise NotImplementedError

    def truncate_checked(self, handle: Handle, length: int) -> None:
        self._keep(handle, np.arange(length))
        handle.settle(length)

    def close(self, handle: Handle) -> None:
        self.num_open -= not handle.closed
        handle.closed = True

    def commit(self, handle: Handle, nodes: Sequence[int]) -> None:
        kept = handle.pending.checked_nodes(nodes)
        self._keep(
            handle, np.concatenate([np.arange(handle.length), handle.length + np.array(kept, dtype=int)])
        )
        handle.settle(handle.length + len(kept))

    def step(self, rows: Sequence[Row]) -> StepOutput:
        refused: dict[int, Refusal] = {}
        out: list[Floats] = []
        for i, row in enumerate(rows):
            handle = row.handle
            assert not handle.closed
            if not row.block.is_chain and len(row.block) > self._widest:
                raise ValueError(f"{len(row.block)} tokens that are no chain")
            logits = np.zeros((0, self.vocab_size))
            if handle.length + row.block.reach > self.max_context:
                refused[i] = "context"
            else:
                logits = self._run(handle, row.block)
                handle.pending = row.block
            out.append(logits[{"all": slice(None), "last": slice(-1, None), "none": slice(0)}[row.logits]])
        offsets = np.cumsum([0, *map(len, out)])
        return StepOutput(np.concatenate(out), tuple(map(int, offsets)), refused=refused)

    def _run(self, handle: Handle, block: Block) -> Floats:
        self._keep(handle, np.arange(handle.length))
        self.num_rows += len(block)
        x = self._embedding[list(block.tokens)] + self._position[handle.length + np.array(block.positions)]
        own = np.tri(len(block), dtype=bool) if block.visible is None else block.visible
        seen = np.concatenate([np.ones((len(block), handle.length), dtype=bool), own], axis=1)
        for layer, (query, key, value, mlp) in enumerate(self._layers):
            normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True))
            handle.keys[layer] = np.concatenate([handle.keys[layer], normed @ key])
            handle.values[layer] = np.concatenate([handle.values[layer], normed @ value])
            scores = np.where(seen, normed @ query @ handle.keys[layer].T / np.sqrt(x.shape[1]), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            x = x + weights / weights.sum(axis=1, keepdims=True) @ handle.values[layer]
            x = x + np.tanh(x @ mlp)
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True)) @ self._head

    def _keep(self, handle: Handle, rows: NDArray[np.int64]) -> None:
        handle.keys = [part[rows] for part in handle.keys]
        handle.values = [part[rows] for part in handle.values]


def tiny_diffusion(
    seed: int = 0, context: Context = "blocks", block_length: int = 4, **options: float
) -> DiffusionModel:
    """Return a model whose mask is its last token. noise: distance of its weights from the seed's own."""
    model = TinyTransformer(seed=seed, **options)  # type: ignore[arg-type]
    return DiffusionModel(model, DiffusionFacts(model.vocab_size - 1, block_length, context))
