"""A language model on torch with fixed shapes: the `Model` port of the core.

Every sequence owns a slot of the cache; a step writes its tokens behind the committed ones and undoing them
is a smaller length. Rows are padded to a width that is allowed, so that few shapes ever appear: each is a
graph on CUDA and Gaudi. What runs a shape is `torch/runners.py`'s business, what a shape is `batch.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch.runners import Output, Runner, timed
from specport.backends.torch.slots.batch import Piece, Widths, pack, window
from specport.backends.torch.slots.cache import SlotCache, capacity_for
from specport.backends.torch.slots.halves import Part
from specport.backends.torch.slots.step import StepShape

from specport.core.ports import Array, Capabilities, Row, StepOutput
from specport.core.tree import TokenTree
from specport.errors import ContextFull

# Rows that the attended length grows by where shapes may vary. torch's attention on processors goes through
# them in blocks of 512; how the last one rounds depends on its size (in bf16, and with AVX-512 in f32 too),
# so it is always a full one.
_STEP = 512
_Found = tuple[Array, dict[int, Array]]  # logits and hidden states of one sequence


@dataclass
class SlotSequence:
    """One sequence's slot, -1 once it is closed, and length.

    pending: what waits for `commit`. drafted: tokens behind the committed ones whose exit queries are held.
    """

    slot: int
    length: int = 0
    pending: TokenTree = field(default_factory=TokenTree)
    drafted: tuple[int, ...] = ()

    def settle(self, length: int) -> None:
        """So many tokens are committed, and nothing is pending or drafted behind them."""
        self.length, self.pending, self.drafted = length, TokenTree(), ()


class SlotModel:
    """A decoder with its cache. One step at a time: callers serialise.

    cache:       may have slots already, which nobody uses.
    widths:      how many tokens a forward pass may bring.
    batch, tree: whether sequences may share a pass, and rows may branch; exact models may only where that
                 changes no logits.
    static:      attended lengths are powers of two, since each is another graph.
    whole:       every pass covers all slots (`SlotCache`: HPU graphs write no views).
    allowed:     asked with the bytes that the cache is about to take; raises ContextFull.
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
        allowed: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        self.runner, self.cache, self.widths = runner, cache, widths
        self.vocab_size, self.max_context = vocab_size, max_context
        self._static, self._whole, self._allowed = static, whole, allowed
        self._free = [*range(cache.slots - 1, -1, -1)]
        self.capabilities = Capabilities(
            tree=tree,
            min_width=min(widths.decode, default=widths.least),
            batch=batch,
            exact=exact,
            hidden_states=hidden_layers,
            rollback="index",
            buckets=widths.decode,
            exit_layer=exit_layer,
        )

    def open(self, capacity: int = 0) -> SlotSequence:
        self._reserve(min(capacity, self.max_context))
        if not self._free:
            self._resize(max(1, 2 * self.cache.slots), self.cache.capacity)
        return SlotSequence(self._free.pop())

    def close(self, handle: SlotSequence) -> None:
        if handle.slot >= 0:
            self._free.append(handle.slot)
            self._free.sort(reverse=True)  # the lowest slot goes out first: windows stay small
        handle.slot = -1
        handle.settle(0)

    def truncate(self, handle: SlotSequence, length: int) -> None:
        if not 0 <= length <= handle.length:
            raise ValueError(f"cannot truncate a sequence of {handle.length} tokens to {length}")
        handle.settle(length)

    def commit(self, handle: SlotSequence, kept: Sequence[int]) -> None:
        path = handle.pending.checked_path(kept)
        if path and path[-1] != len(path) - 1:
            # Padded to a width that is allowed; what is added stays where it is.
            rows = np.arange(self.widths.decoded(len(path)))
            rows[: len(path)] = path
            self._move(handle, rows, np.arange(len(rows)))
        handle.settle(handle.length + len(path))

    def _move(self, handle: SlotSequence, source: np.ndarray, target: np.ndarray) -> None:
        device = self.cache.shape.device
        # One copy to the device, as for a step.
        found = np.concatenate([[handle.slot], handle.length + source, handle.length + target])
        where = torch.from_numpy(found).to(device)
        with torch.no_grad():
            self.cache.move(where[:1], where[1 : 1 + len(source)], where[1 + len(source) :])

    def step(self, rows: Sequence[Row]) -> StepOutput:
        pieces = [piece_of(row) for row in rows]
        self._admit(pieces)
        for row in rows:
            row.handle.pending = row.tree
        return self._pass(pieces, "whole")

    def _admit(self, pieces: Sequence[Piece]) -> None:
        """Room in the cache for these. Raises what `step` does, before anything changed."""
        for piece in pieces:
            deepest = piece.length + max(piece.tree.depths())
            if deepest > self.max_context:
                raise ContextFull(f"{deepest} tokens do not fit the model's context of {self.max_context}")
            if not piece.tree.is_chain:
                most = self.widths.most if self.capabilities.tree else 0
                if len(piece.tree) > most:
                    raise ValueError(f"a tree of {len(piece.tree)} nodes; this model steps {most} at most")
        self._reserve(max(piece.length + len(piece.tree) for piece in pieces))

    def _pass(self, pieces: Sequence[Piece], part: Part) -> StepOutput:
        """Run a part of the model on these, in as few forward passes as may be."""
        groups = self._groups(pieces)
        found: dict[int, _Found] = {}
        seconds = 0.0
        for group in groups:
            outputs, spent = self._run([pieces[i] for i in group], part)
            seconds += spent
            # A runner's next call may write over its last output.
            found |= zip(group, outputs if len(groups) == 1 else map(_cloned, outputs), strict=True)
        logits = [found[i][0] for i in range(len(pieces))]
        offsets = np.cumsum([0, *(len(part) for part in logits)]).tolist()
        hidden = {layer: _joined([found[i][1][layer] for i in range(len(pieces))]) for layer in found[0][1]}
        return StepOutput(_joined(logits), tuple(offsets), seconds, hidden)

    def _groups(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Which of them share a forward pass: the short ones, if any may; a long one is read alone."""
        short = [i for i, piece in enumerate(pieces) if len(piece.tree) <= self.widths.most]
        long = [[i] for i in range(len(pieces)) if i not in short]
        if self.capabilities.batch and short:
            return [short, *long]
        return [[i] for i in range(len(pieces))]

    def _run(self, pieces: Sequence[Piece], part: Part) -> tuple[list[_Found], float]:
        """Logits and hidden states of each piece, those that it asks for."""
        if len(pieces) == 1 and len(pieces[0].tree) > self.widths.most:
            return self._read(pieces[0], part)
        width = self.widths.decoded(max(len(piece.tree) for piece in pieces))
        (logits, hidden), first, spent = self._forward(pieces, part, width)
        return [_own(piece, first, logits, hidden) for piece in pieces], spent

    def _read(self, piece: Piece, part: Part) -> tuple[list[_Found], float]:
        """A long chain in shorter ones, each behind the rows of those before it."""
        tokens, seconds, start = piece.tree.tokens, 0.0, 0
        found: list[_Found] = []
        for count, width in self.widths.pieces(len(tokens)):
            tree = TokenTree.chain(tokens[start : start + count])
            short = Piece(piece.slot, piece.length + start, tree, piece.logits)
            (logits, hidden), first, spent = self._forward([short], part, width)
            seconds += spent
            start += count
            if piece.logits != "last" or start == len(tokens):
                found.append(_own(short, first, logits, hidden))
                if count < len(tokens):
                    found[-1] = _cloned(found[-1])
        hidden = {layer: _joined([states[layer] for _, states in found]) for layer in found[0][1]}
        return [(_joined([logits for logits, _ in found]), hidden)], seconds

    def _forward(self, pieces: Sequence[Piece], part: Part, width: int) -> tuple[Output, int, float]:
        start = time.perf_counter()
        packed, shape = self._packed(pieces, part, width)
        packing = time.perf_counter() - start
        output, spent = timed(self.runner, packed, shape, self.cache.shape.device)
        return output, shape.first, packing + spent

    def _packed(
        self, pieces: Sequence[Piece], part: Part, width: int, more: int = 0
    ) -> tuple[NDArray[np.int64], StepShape]:
        """The input of a forward pass that sees so many `more` rows than the new tokens need."""
        total = self.cache.slots
        first, size = (0, total) if self._whole else window([piece.slot for piece in pieces], total)
        length = self._length(max(piece.length for piece in pieces) + width + more)
        return pack(
            pieces, part, first=first, slots=size, width=width, length=length, capacity=self.cache.capacity
        )

    def _length(self, rows: int) -> int:
        if self._static:
            return min(capacity_for(rows), self.cache.capacity)
        return min(-(-rows // _STEP) * _STEP, self.cache.capacity)

    def _reserve(self, rows: int) -> None:
        """Room for so many rows in every slot, for the padding behind them and for what idle slots write."""
        spare = 2 * max([*self.widths.read, self.widths.most])
        if rows + spare > self.cache.capacity:
            self._resize(max(1, self.cache.slots), capacity_for(rows + spare))

    def _resize(self, slots: int, capacity: int) -> None:
        self._allowed(self.cache.shape.nbytes(slots, capacity))
        new = range(self.cache.slots, slots)
        self.cache.resize(slots, capacity)
        self.runner.reset()
        self._free = sorted([*self._free, *new], reverse=True)


def piece_of(row: Row, behind: int = 0) -> Piece:
    """A row's tokens, so many behind the committed ones of its sequence."""
    return Piece(row.handle.slot, row.handle.length + behind, row.tree, row.logits)


def _own(piece: Piece, first: int, logits: Array, hidden: Mapping[int, Array]) -> _Found:
    """What a forward pass over the slots from `first` on found for a piece: all, or its last token alone."""
    slot, n = piece.slot - first, len(piece.tree)
    own = logits[slot, :n]  # where only the last token's were computed, this is the one row there is
    start = 0
    if piece.logits == "last":
        own, start = own[-1:], n - 1
    return own, {layer: states[slot, start:n] for layer, states in hidden.items()}


def _cloned(found: _Found) -> _Found:
    return found[0].clone(), {layer: states.clone() for layer, states in found[1].items()}


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
