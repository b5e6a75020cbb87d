"""Draft a greedy chain on the device: each pass reads the likeliest token of the pass before.

The whole chain is one call of a runner, and one graph on CUDA and Gaudi. The host waits once for all tokens
instead of once for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from specport.backends.torch.runners import Output, Runner, timed
from specport.backends.torch.slots.batch import Piece, Widths
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.passes import Passes
from specport.backends.torch.slots.step import StepShape

from specport.core.arrays import to_host
from specport.core.ports import Block, Chains, Refusal, Row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ChainShape:
    """Hold the sizes of a chain. Chains of equal shape run as the same graph.

    read:  shape of the first pass, over the rows' own tokens.
    next:  shape of each other pass, over one token.
    depth: number of tokens to draft.
    vocab: number of leading columns of the logits to choose from.
    last:  row that an idle slot writes to.
    """

    read: StepShape
    next: StepShape
    depth: int
    vocab: int
    last: int


class ChainModule(torch.nn.Module):  # type: ignore[misc]
    """Draft a chain token by token, in one call of a runner.

    step:        a `StepModule`, or a compiled one.
    head_tokens: ids of the columns of a cut head; None = every id, in order.
    """

    def __init__(
        self,
        step: Callable[[Tensor, StepShape], Output],
        head_tokens: tuple[int, ...] | None,
        device: str,
    ) -> None:
        super().__init__()
        self._step = step
        self._ids = None if head_tokens is None else torch.tensor(head_tokens, device=device)

    def forward(self, packed: Tensor, shape: ChainShape) -> tuple[Tensor, Tensor]:
        """Return tokens and their probabilities, both [slots, depth].

        packed: the input of `shape.read`, then the number of new tokens of each slot [slots].
        """
        slots = shape.read.slots
        inputs, counts = packed[:-slots], packed[-slots:]
        lengths = shape.read.unpack(inputs)["lengths"]
        # Only one row exists where only the last token's logits were computed.
        ends = (counts - 1).clamp(0, shape.read.kept - 1)
        logits = self._step(inputs, shape.read)[0]
        logits = logits.gather(1, ends[:, None, None].expand(-1, 1, logits.shape[2]))
        tokens: list[Tensor] = []
        confidences: list[Tensor] = []
        for i in range(shape.depth):
            if i:
                behind = (lengths + counts + i - 1).clamp(max=shape.last)
                logits = self._step(_single(tokens[-1], behind, shape.next), shape.next)[0]
            token, confidence = self._likeliest(logits[:, 0, : shape.vocab])
            tokens.append(token)
            confidences.append(confidence)
        return torch.stack(tokens, dim=1), torch.stack(confidences, dim=1)

    def _likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the [slots] ids of the likeliest tokens, and their probabilities."""
        column = logits.argmax(dim=1, keepdim=True)
        confidence = 1 / (logits - logits.gather(1, column)).exp().sum(dim=1)
        column = column[:, 0]
        return (column if self._ids is None else self._ids[column]), confidence


def _single(tokens: Tensor, lengths: Tensor, shape: StepShape) -> Tensor:
    """Return the packed input of a step of one token per slot behind `lengths` rows, built on the device."""
    slots, new = shape.slots, shape.new
    # Padding repeats the token; its outputs are not read.
    spread = torch.stack([tokens, lengths], dim=0)[:, :, None].expand(2, slots, new)
    alone = torch.eye(new, dtype=tokens.dtype, device=tokens.device).expand(slots, new, new)
    parts = {
        "ids": spread[0],
        "positions": spread[1],
        "lengths": lengths,
        "visible": alone,
        "kept": torch.zeros(shape.kept, dtype=tokens.dtype, device=tokens.device),
    }
    return torch.cat([parts[name].reshape(-1) for name in shape.sizes()])


@dataclass(frozen=True)
class SlotChain:
    """Implement the `GreedyChain` port on slots.

    runner: runs a `ChainModule` on the model's own step.
    admit:  makes room for pieces and returns those that do not fit (`SlotModel.admit`).
    passes: lays out the first pass of a chain.
    """

    runner: Runner
    admit: Callable[[Sequence[Piece]], dict[int, Refusal]]
    passes: Passes
    cache: SlotCache
    widths: Widths
    vocab_size: int

    @property
    def max_tokens(self) -> int:
        return self.widths.most

    def draft(self, rows: Sequence[Row], depth: int, vocab: int | None = None) -> Chains | None:
        pieces = [Piece(row.handle.slot, row.handle.length, row.block, "last") for row in rows]
        longest = max(len(piece.block) for piece in pieces)
        if depth < 1 or not all(piece.block.is_chain for piece in pieces) or longest > self.max_tokens:
            raise ValueError(f"chains are drafted behind chains of up to {self.max_tokens} tokens")
        unread = (0,) * (depth - 1)  # the last drafted token is never read
        if self.admit([replace(p, block=Block.chain(p.block.tokens + unread)) for p in pieces]):
            return None
        start = time.perf_counter()
        single = self.widths.decoded(1)
        packed, read = self.passes.packed(pieces, "whole", self.widths.decoded(longest), depth + single)
        counts = np.zeros(read.slots, dtype=np.int64)
        order = [piece.slot - read.first for piece in pieces]
        counts[order] = [len(piece.block) for piece in pieces]
        shape = ChainShape(
            read,
            replace(read, new=single, kept=1),
            depth,
            vocab or self.vocab_size,
            self.cache.capacity - single,
        )
        packing = time.perf_counter() - start
        found, spent = timed(self.runner, np.concatenate([packed, counts]), shape, self.cache.shape.device)
        tokens, confidences = (to_host(part)[order] for part in found)
        for row, drafted in zip(rows, tokens.tolist(), strict=True):
            row.handle.pending = Block.chain((*row.block.tokens, *drafted[:-1]))
        return Chains(tokens, confidences, packing + spent)
