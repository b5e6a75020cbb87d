"""Run pieces in as few forward passes as possible, and return the outputs that each asks for."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch.runners import Output, Runner, timed
from specport.backends.torch.slots.batch import Piece, Widths, pack, window
from specport.backends.torch.slots.cache import SlotCache, capacity_for
from specport.backends.torch.slots.halves import Part
from specport.backends.torch.slots.states import Keep
from specport.backends.torch.slots.step import StepShape

from specport.core.ports import Array, Block, StepOutput, Wanted

# Rows that the attended length grows by where shapes may vary. torch's attention on processors goes through
# them in blocks of 512; how the last one rounds depends on its size (in bf16, and with AVX-512 in f32 too),
# so it is always a full one.
_STEP = 512
_Found = tuple[Array, dict[int, Array]]  # logits and hidden states of one piece


class Passes:
    """Run forward passes of fixed shapes over a cache.

    runner: runs a `StepModule`.
    batch:  whether pieces may share a pass.
    static: whether attended lengths are powers of two, since each length is another graph.
    whole:  whether every pass covers all slots (`SlotCache`: HPU graphs cannot write to views).
    """

    def __init__(
        self,
        runner: Runner,
        cache: SlotCache,
        widths: Widths,
        *,
        vocab_size: int,
        batch: bool = True,
        static: bool = False,
        whole: bool = False,
    ) -> None:
        self.runner, self._cache, self._widths = runner, cache, widths
        self._vocab_size, self._batch, self._static, self._whole = vocab_size, batch, static, whole

    def run(self, pieces: Sequence[Piece], part: Part, left_out: Collection[int] = ()) -> StepOutput:
        """Run a part of the model on these pieces, except `left_out`, which have no rows in the output."""
        groups = self._groups(pieces, [i for i in range(len(pieces)) if i not in left_out])
        nothing = torch.empty((0, self._vocab_size), device=self._cache.shape.device)
        found: list[_Found] = [(nothing, {})] * len(pieces)
        seconds = 0.0
        for group in groups:
            outputs, spent = self._run([pieces[i] for i in group], part)
            seconds += spent
            for i, output in zip(group, outputs, strict=True):
                # A runner's next call may write over its last output.
                found[i] = output if len(groups) == 1 else _cloned(output)
        logits = [own for own, _ in found]
        layers = sorted({layer for _, states in found for layer in states})
        hidden = {layer: [states[layer] for _, states in found if layer in states] for layer in layers}
        counts = [len(next(iter(states.values()), ())) for _, states in found]
        return StepOutput(
            _joined(logits),
            _offsets(map(len, logits)),
            seconds,
            hidden={layer: _joined(states) for layer, states in hidden.items()},
            hidden_offsets=_offsets(counts),
        )

    def packed(
        self, pieces: Sequence[Piece], part: Part, width: int, more: int = 0, keep: Keep = "each"
    ) -> tuple[NDArray[np.int64], StepShape]:
        """Return the packed input and shape of a forward pass.

        more: number of rows to attend to beyond those that the new tokens need.
        keep: states that are kept where the decoder has them.
        """
        total = self._cache.slots
        first, size = (0, total) if self._whole else window([piece.slot for piece in pieces], total)
        length = self.length(max(piece.length for piece in pieces) + width + more)
        capacity, keep = self._cache.capacity, keep if self._cache.shape.states else "none"
        return pack(
            pieces, part, first=first, slots=size, width=width, length=length, capacity=capacity, keep=keep
        )

    def length(self, rows: int) -> int:
        """Return the number of rows that a pass attends to which needs `rows`."""
        if self._static:
            return min(capacity_for(rows), self._cache.capacity)
        return min(-(-rows // _STEP) * _STEP, self._cache.capacity)

    def _groups(self, pieces: Sequence[Piece], which: Sequence[int]) -> list[list[int]]:
        """Return which pieces share a forward pass: the short ones, if allowed; a long one has its own."""
        short = [i for i in which if len(pieces[i].block) <= self._widths.most]
        if self._batch and short:
            return [short, *([i] for i in which if i not in short)]
        return [[i] for i in which]

    def _run(self, pieces: Sequence[Piece], part: Part) -> tuple[list[_Found], float]:
        """Return the logits and hidden states that each piece asks for, and the seconds."""
        if len(pieces) == 1 and len(pieces[0].block) > self._widths.most:
            return self._read(pieces[0], part)
        width = self._widths.decoded(max(len(piece.block) for piece in pieces))
        (logits, hidden), first, spent = self._forward(pieces, part, width)
        return [_own(piece, first, logits, hidden) for piece in pieces], spent

    def _read(self, piece: Piece, part: Part) -> tuple[list[_Found], float]:
        """Run a long chain in consecutive parts."""
        tokens, seconds, start, base = piece.block.tokens, 0.0, 0, piece.base
        found: list[_Found] = []
        for i, (count, width) in enumerate(self._widths.pieces(len(tokens))):
            block, targets = Block.chain(tokens[start : start + count]), piece.targets[i : i + 1]
            short = replace(piece, length=piece.length + start, block=block, base=base, targets=targets)
            base = targets[0] if targets else base
            (logits, hidden), first, spent = self._forward([short], part, width, "last")
            seconds += spent
            start += count
            if start < len(tokens):  # the part's last token is not the row's last token
                short = replace(short, logits=_inner(piece.logits), hidden=_inner(piece.hidden))
            own = _own(short, first, logits, hidden)
            found.append(_cloned(own) if start < len(tokens) else own)
        hidden = {
            layer: _joined([states[layer] for _, states in found if layer in states])
            for layer in found[-1][1]
        }
        return [(_joined([own for own, _ in found]), hidden)], seconds

    def _forward(
        self, pieces: Sequence[Piece], part: Part, width: int, keep: Keep = "each"
    ) -> tuple[Output, int, float]:
        start = time.perf_counter()
        packed, shape = self.packed(pieces, part, width, keep=keep)
        packing = time.perf_counter() - start
        output, spent = timed(self.runner, packed, shape, self._cache.shape.device)
        return output, shape.first, packing + spent


def _own(piece: Piece, first: int, logits: Array, hidden: Mapping[int, Array]) -> _Found:
    """Return the outputs that a piece asks for, of a forward pass over the slots from `first` on."""
    slot, n = piece.slot - first, len(piece.block)
    # Where only the last token's logits were computed, they are the only row.
    own = _chosen(logits[slot, :n], piece.logits)
    if piece.hidden == "none":
        return own, {}
    return own, {layer: _chosen(states[slot, :n], piece.hidden) for layer, states in hidden.items()}


def _chosen(rows: Array, wanted: Wanted) -> Array:
    if wanted == "all":
        return rows
    return rows[-1:] if wanted == "last" else rows[:0]


def _inner(wanted: Wanted) -> Wanted:
    """Return the outputs wanted of a part of a row that is not its end."""
    return "none" if wanted == "last" else wanted


def _cloned(found: _Found) -> _Found:
    return found[0].clone(), {layer: states.clone() for layer, states in found[1].items()}


def _joined(parts: Sequence[Array]) -> Array:
    filled = [part for part in parts if len(part)] or parts[:1]
    return filled[0] if len(filled) == 1 else torch.cat([*filled])


def _offsets(counts: Iterable[int]) -> tuple[int, ...]:
    return tuple(accumulate(counts, initial=0))
