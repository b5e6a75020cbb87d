"""Implement the `Model` port on torch with steps of few fixed shapes.

Each sequence owns a slot of the cache. A step writes its tokens behind the committed ones; to discard them,
the sequence's length stays as it is. Rows are padded to an allowed width, so that few shapes appear: each is
one graph on CUDA and Gaudi. `passes.py` chooses a step's shapes, `batch.py` lays out its inputs,
`torch/runners.py` runs it, and `pool.py` sizes the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch.runners import Runner
from specport.backends.torch.slots.batch import Piece, Widths
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.chain import SlotChain
from specport.backends.torch.slots.early_exit import SlotEarlyExit
from specport.backends.torch.slots.passes import Passes
from specport.backends.torch.slots.pool import SlotPool
from specport.backends.torch.slots.rollback import Rollback
from specport.backends.torch.slots.sequence import SlotSequence

from specport.core.copied_blocks import CopiedBlocks
from specport.core.ports import (
    Block,
    Capabilities,
    CheckedModel,
    Refusal,
    Row,
    StepOutput,
)
from specport.errors import ContextFull


class SlotModel(CheckedModel[SlotSequence]):
    """Run a decoder on its cache. Not thread-safe.

    runner:      runs a `StepModule` on the cache.
    cache:       may have slots already; no other model uses them.
    widths:      allowed numbers of new tokens of a forward pass.
    batch, tree: whether sequences may share a pass, and whether a block may have another mask than a chain's.
                 In exact mode only where that does not change logits.
    static, whole: as in `Passes`.
    exit_layer:  number of layers after which the module exits early; 0 = it does not.
    chains:      runs a `ChainModule` on the model's own step; None = the model drafts no chains.
    budget:      returns the bytes that the cache may take; None = no limit is known.
    kept_bytes:  most host memory of blocks that outlive their sequence; 0 = none are kept. A decoder with
                 states keeps none: it has states at few tokens of a text.
    """

    def __init__(
        self,
        runner: Runner,
        cache: SlotCache,
        *,
        vocab_size: int,
        max_context: int,
        widths: Widths,
        exact: bool,
        batch: bool = True,
        tree: bool = True,
        static: bool = False,
        whole: bool = False,
        hidden_layers: tuple[int, ...] = (),
        exit_layer: int = 0,
        chains: Runner | None = None,
        budget: Callable[[], int | None] = lambda: None,
        kept_bytes: int = 0,
    ) -> None:
        self.cache, self.widths = cache, widths
        self.vocab_size, self.max_context = vocab_size, max_context
        stateful = bool(cache.shape.states)
        self.capabilities = Capabilities(
            visibility=("tree" if stateful else "any") if tree else "chain",
            min_width=min(widths.decode, default=widths.least),
            batch=batch,
            exact=exact,
            gather=not stateful,
            hidden_layers=hidden_layers,
            buckets=widths.decode,
        )
        self.passes = Passes(
            runner, cache, widths, vocab_size=vocab_size, batch=batch, static=static, whole=whole
        )
        self.early_exit: SlotEarlyExit | None = None
        if exit_layer:
            self.early_exit = SlotEarlyExit(exit_layer, self.admit, self.passes)
        self.chain: SlotChain | None = None
        if chains:
            self.chain = SlotChain(chains, self.admit, self.passes, cache, widths, vocab_size)
        self.rollback: Rollback | None = None
        if stateful:
            self.rollback = Rollback(cache.states, widths, cache.shape.device, self._read)
        if kept_bytes and not stateful:
            self.prefix_blocks = CopiedBlocks(self, cache.shape.row_bytes, kept_bytes)
        spare = 2 * max([*widths.read, widths.most])
        self._pool = SlotPool(cache, spare, budget, self._reset, shrinks=not runner.captures)

    @property
    def cache_usage(self) -> float | None:
        return self._pool.usage

    def room(self, handle: SlotSequence | None = None) -> int:
        length = handle.length if handle is not None else 0
        return max(0, min(self.max_context, self._pool.most_rows(new=handle is None)) - length)

    def open_checked(self, capacity: int) -> SlotSequence:
        if capacity > self.max_context:
            raise ContextFull(f"{capacity} tokens do not fit the model's context of {self.max_context}")
        return SlotSequence(self._pool.take(capacity))

    def fork_checked(self, handle: SlotSequence, length: int) -> SlotSequence:
        new = SlotSequence(self._pool.take(length), length=length)
        rows = np.arange(self.passes.length(length))  # rows beyond `length` will be overwritten
        self._move(handle.slot, new.slot, rows, rows)
        if self.rollback:
            self.rollback.fork(handle, new)
        return new

    def read_rows(self, handle: SlotSequence, start: int, stop: int) -> NDArray[np.uint8]:
        """Return a copy of these rows' bytes on the host (`core.copied_blocks`)."""
        return self.cache.read(handle.slot, start, stop)

    def write_rows(self, handle: SlotSequence, content: NDArray[np.uint8], num_tokens: int) -> None:
        """Append rows from `read_rows` as committed tokens."""
        self.cache.write(handle.slot, handle.length, num_tokens, content)
        handle.settle(handle.length + num_tokens)

    def truncate_checked(self, handle: SlotSequence, length: int) -> None:
        super().truncate_checked(handle, length)
        handle.history.cut(length)

    def close(self, handle: SlotSequence) -> None:
        if not handle.closed:
            self._pool.give(handle.slot)
        handle.closed = True
        handle.settle(0)

    def commit(self, handle: SlotSequence, nodes: Sequence[int]) -> None:
        kept = handle.pending.checked_nodes(nodes)
        if self.rollback:
            self.rollback.commit(handle, kept)
        if kept and kept[-1] != len(kept) - 1:
            # Padded to an allowed width; the added rows are copied onto themselves.
            rows = np.arange(self.widths.decoded(len(kept)))
            rows[: len(kept)] = kept
            target = handle.length + np.arange(len(rows))
            self._move(handle.slot, handle.slot, handle.length + rows, target)
        handle.settle(handle.length + len(kept))

    def step(self, rows: Sequence[Row]) -> StepOutput:
        pieces = [piece_of(row) for row in rows]
        refused = self.admit(pieces)
        handles = {i: row.handle for i, row in enumerate(rows) if i not in refused}
        before = 0.0
        if self.early_exit:
            before = self.early_exit.read([pieces[i] for i in handles], [h.drafted for h in handles.values()])
        if self.rollback:
            before = self.rollback.catch_up([*handles.values()])
        for i, handle in handles.items():
            if self.rollback:
                pieces[i] = self.rollback.placed(handle, pieces[i])
            handle.pending, handle.drafted = rows[i].block, ()
        output = self.passes.run(pieces, "back" if self.early_exit else "whole", refused)
        return replace(output, seconds=output.seconds + before, refused=refused)

    def admit(self, pieces: Sequence[Piece]) -> dict[int, Refusal]:
        """Grow the cache for these pieces; return which of them do not fit, and why.

        Raises ValueError for a block that cannot be stepped, before anything changed.
        """
        for piece in pieces:
            self._check(piece.block)
        refused: dict[int, Refusal] = {
            i: "context" for i, p in enumerate(pieces) if p.length + p.block.reach > self.max_context
        }
        needs = {i: p.length + len(p.block) for i, p in enumerate(pieces) if i not in refused}
        rows = self._pool.reserve(needs.values())
        return refused | {i: "cache" for i, need in needs.items() if need > rows}

    def _read(self, pieces: Sequence[Piece]) -> float:
        return self.passes.run(pieces, "whole").seconds

    def _check(self, block: Block) -> None:
        if not len(block):
            raise ValueError("a row needs at least one token")
        if block.is_chain:
            return
        if self.rollback and block.parents() is None:
            raise ValueError(f"{len(block)} tokens that are no tree; this model steps chains and trees only")
        if not self.capabilities.tree:
            raise ValueError(f"{len(block)} tokens that are no chain; this model steps chains only")
        if len(block) > self.widths.most:
            raise ValueError(
                f"{len(block)} tokens that are no chain; this model steps {self.widths.most} at most"
            )

    def _move(self, slot: int, to: int, source: NDArray[np.int64], target: NDArray[np.int64]) -> None:
        """Copy rows `source` of a slot to rows `target` of the slot `to`, which may be the same."""
        # All indices go to the device in one copy.
        where = torch.from_numpy(np.concatenate([[slot, to], source, target])).to(self.cache.shape.device)
        with torch.no_grad():
            self.cache.move(where[:1], where[1:2], where[2 : 2 + len(source)], where[2 + len(source) :])

    def _reset(self) -> None:
        self.passes.runner.reset()
        if self.chain:
            self.chain.runner.reset()


def piece_of(row: Row) -> Piece:
    """Return a row as a piece behind the committed tokens of its sequence."""
    return Piece(row.handle.slot, row.handle.length, row.block, row.logits, row.hidden)
