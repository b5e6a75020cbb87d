"""A greedy chain drafted on the device: each pass reads the token that the one before it found likeliest.

The whole chain is one call of a runner, so that on CUDA it is one graph and on Gaudi another; the host waits
once for all of its tokens instead of once for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.backends.torch.runners import Output, Runner, timed
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.model import SlotModel, piece_of
from specport.backends.torch.slots.step import StepShape

from specport.core.model_kinds import Chains
from specport.core.ports import Row
from specport.core.sampling.sampler import to_host
from specport.core.tree import TokenTree

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ChainShape:
    """What must be equal for two chains to run as the same graph.

    read: the pass over the rows' own tokens; next: those of one token, to which all others belong; depth:
    tokens to draft; vocab: columns of the logits that count; last: where an idle slot writes.
    """

    read: StepShape
    next: StepShape
    depth: int
    vocab: int
    last: int


class ChainModule(torch.nn.Module):  # type: ignore[misc]
    """What a runner runs for a chain. step: a `StepModule`, or what was compiled of one.

    head_tokens: the ids behind the columns of a cut head; None = every id, in order.
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
        """Tokens and their probabilities, both [slots, depth]; packed: input of `shape.read`, then how many
        tokens each slot brings [slots]."""
        slots = shape.read.slots
        inputs, counts = packed[:-slots], packed[-slots:]
        lengths = shape.read.unpack(inputs)["lengths"]
        # One row where the last token's alone were computed.
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
        """[slots] ids of the likeliest tokens, and their probabilities."""
        column = logits.argmax(dim=1, keepdim=True)
        confidence = 1 / (logits - logits.gather(1, column)).exp().sum(dim=1)
        column = column[:, 0]
        return (column if self._ids is None else self._ids[column]), confidence


def _single(tokens: Tensor, lengths: Tensor, shape: StepShape) -> Tensor:
    """The packed input of a step of one token a slot behind `lengths` rows, made on the device."""
    slots, new = shape.slots, shape.new
    # Padding stands where the token does: nobody reads what it computes.
    spread = torch.stack([tokens, lengths], dim=0)[:, :, None].expand(2, slots, new)
    alone = torch.eye(new, dtype=tokens.dtype, device=tokens.device).expand(slots, new, new)
    parts = {
        "ids": spread[0],
        "positions": spread[1],
        "lengths": lengths,
        "tree": alone,
        "kept": torch.zeros(shape.kept, dtype=tokens.dtype, device=tokens.device),
    }
    return torch.cat([parts[name].reshape(-1) for name in shape.sizes()])


class ChainModel(SlotModel):
    """A `SlotModel` that drafts whole chains: the port of the same name.

    chains: runs a `ChainModule` on the model's own step.
    """

    def __init__(self, runner: Runner, cache: SlotCache, *, chains: Runner, **options: Any) -> None:
        super().__init__(runner, cache, **options)
        self.chains = chains
        self.capabilities = replace(self.capabilities, chain=self.widths.most)

    def chain(self, rows: Sequence[Row], depth: int, vocab: int | None = None) -> Chains:
        pieces = [replace(piece_of(row), logits="last") for row in rows]
        longest = max(len(piece.tree) for piece in pieces)
        if depth < 1 or not all(piece.tree.is_chain for piece in pieces) or longest > self.widths.most:
            raise ValueError(f"chains are drafted behind rows of up to {self.widths.most} tokens, no trees")
        unread = (0,) * (depth - 1)  # the last token that is drafted is never read
        self._admit([replace(p, tree=TokenTree.chain(p.tree.tokens + unread)) for p in pieces])
        start = time.perf_counter()
        single = self.widths.decoded(1)
        packed, read = self._packed(pieces, "whole", self.widths.decoded(longest), depth + single)
        counts = np.zeros(read.slots, dtype=np.int64)
        order = [piece.slot - read.first for piece in pieces]
        counts[order] = [len(piece.tree) for piece in pieces]
        shape = ChainShape(
            read,
            replace(read, new=single, kept=1),
            depth,
            vocab or self.vocab_size,
            self.cache.capacity - single,
        )
        packing = time.perf_counter() - start
        found, spent = timed(self.chains, np.concatenate([packed, counts]), shape, self.cache.shape.device)
        tokens, confidences = (to_host(part)[order] for part in found)
        for row, drafted in zip(rows, tokens.tolist(), strict=True):
            row.handle.pending = TokenTree.chain((*row.tree.tokens, *drafted[:-1]))
        return Chains(tokens, confidences, packing + spent)

    def _resize(self, slots: int, capacity: int) -> None:
        super()._resize(slots, capacity)
        self.chains.reset()
