"""A language model on torch with fixed shapes: the `Model` port of the core.

Every sequence owns a slot of the cache; a step writes its tokens behind the committed ones and undoing them
is a smaller length. Rows are padded to a width that is allowed, so that few shapes ever appear: each is a
graph on CUDA and Gaudi. What runs a shape is `runners.py`'s business, what a shape is `batch.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from specport.backends.torch.batch import Piece, Widths, pack, window
from specport.backends.torch.cache import SlotCache, capacity_for
from specport.backends.torch.runners import Output, Runner, timed

from specport.core.ports import Array, Capabilities, Row, StepOutput
from specport.core.tree import TokenTree
from specport.errors import ContextFull

# Rows that the attended length grows by where shapes may vary. torch's attention on processors goes through
# them in blocks of 512; how bf16 rounds in the last one depends on its size, so it is always a full one.
_STEP, _STEPS = 128, {torch.bfloat16: 512}


@dataclass
class SlotSequence:
    """One sequence's slot, -1 once it is closed, and length; `pending` waits for `commit`."""

    slot: int
    length: int = 0
    pending: TokenTree = field(default_factory=TokenTree)


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
        handle.slot, handle.length, handle.pending = -1, 0, TokenTree()

    def truncate(self, handle: SlotSequence, length: int) -> None:
        if not 0 <= length <= handle.length:
            raise ValueError(f"cannot truncate a sequence of {handle.length} tokens to {length}")
        handle.length, handle.pending = length, TokenTree()

    def commit(self, handle: SlotSequence, kept: Sequence[int]) -> None:
        path = handle.pending.checked_path(kept)
        if path and path[-1] != len(path) - 1:
            # Padded to a width that is allowed; what is added stays where it is.
            rows = np.arange(self.widths.decoded(len(path)))
            rows[: len(path)] = path
            self._move(handle, rows, np.arange(len(rows)))
        handle.length += len(path)
        handle.pending = TokenTree()

    def _move(self, handle: SlotSequence, source: np.ndarray, target: np.ndarray) -> None:
        device = self.cache.shape.device
        # One copy to the device, as for a step.
        found = np.concatenate([[handle.slot], handle.length + source, handle.length + target])
        where = torch.from_numpy(found).to(device)
        with torch.no_grad():
            self.cache.move(where[:1], where[1 : 1 + len(source)], where[1 + len(source) :])

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            deepest = row.handle.length + max(row.tree.depths())
            if deepest > self.max_context:
                raise ContextFull(f"{deepest} tokens do not fit the model's context of {self.max_context}")
            if not row.tree.is_chain and not (self.capabilities.tree and len(row.tree) <= self.widths.most):
                most = self.widths.most if self.capabilities.tree else 0
                raise ValueError(f"a tree of {len(row.tree)} nodes; this model steps {most} at most")
        self._reserve(max(row.handle.length + len(row.tree) for row in rows))
        for row in rows:
            row.handle.pending = row.tree
        groups = self._groups(rows)
        found: dict[int, tuple[Array, dict[int, Array]]] = {}
        seconds = 0.0
        for group in groups:
            outputs, spent = self._run([rows[i] for i in group])
            seconds += spent
            # A runner's next call may write over its last output.
            found |= zip(group, outputs if len(groups) == 1 else map(_cloned, outputs), strict=True)
        logits = [found[i][0] for i in range(len(rows))]
        offsets = np.cumsum([0, *(len(part) for part in logits)]).tolist()
        hidden = {layer: _joined([found[i][1][layer] for i in range(len(rows))]) for layer in found[0][1]}
        return StepOutput(_joined(logits), tuple(offsets), seconds, hidden)

    def _groups(self, rows: Sequence[Row]) -> list[list[int]]:
        """Which rows share a forward pass: the short ones, if any may; a long one is read alone."""
        short = [i for i, row in enumerate(rows) if len(row.tree) <= self.widths.most]
        long = [[i] for i in range(len(rows)) if i not in short]
        if self.capabilities.batch and short:
            return [short, *long]
        return [[i] for i in range(len(rows))]

    def _run(self, rows: Sequence[Row]) -> tuple[list[tuple[Array, dict[int, Array]]], float]:
        """Logits and hidden states of each row, those that it asks for."""
        if len(rows) == 1 and len(rows[0].tree) > self.widths.most:
            return self._read(rows[0])
        pieces = [
            Piece(row.handle.slot, row.handle.length, row.tree, _wanted(row, len(rows))) for row in rows
        ]
        width = self.widths.decoded(max(len(row.tree) for row in rows))
        (logits, hidden), first, spent = self._forward(pieces, width)
        out = []
        for row, piece in zip(rows, pieces, strict=True):
            slot, n = row.handle.slot - first, len(row.tree)
            own = logits[slot] if piece.wanted is not None else logits[slot, :n]
            if row.logits == "last":
                own = own[-1:]
            start = n - 1 if row.logits == "last" else 0
            out.append((own, {layer: states[slot, start:n] for layer, states in hidden.items()}))
        return out, spent

    def _read(self, row: Row) -> tuple[list[tuple[Array, dict[int, Array]]], float]:
        """A long chain in pieces, each behind the rows of those before it."""
        tokens, seconds = row.tree.tokens, 0.0
        logits: list[Array] = []
        hidden: dict[int, list[Array]] = {layer: [] for layer in self.capabilities.hidden_states}
        start = 0
        pieces = self.widths.pieces(len(tokens))
        for number, (count, width) in enumerate(pieces):
            tree = TokenTree.chain(tokens[start : start + count])
            wanted = count - 1 if row.logits == "last" else None
            piece = Piece(row.handle.slot, row.handle.length + start, tree, wanted)
            (found, states), first, spent = self._forward([piece], width)
            seconds += spent
            slot = piece.slot - first
            if row.logits == "all" or number == len(pieces) - 1:
                keep = slice(count - 1, count) if row.logits == "last" else slice(0, count)
                own = found[slot] if row.logits == "last" else found[slot, keep]
                logits.append(own.clone() if len(pieces) > 1 else own)
                for layer, parts in hidden.items():
                    parts.append(states[layer][slot, keep].clone())
            start += count
        return [(_joined(logits), {layer: _joined(parts) for layer, parts in hidden.items()})], seconds

    def _forward(self, pieces: Sequence[Piece], width: int) -> tuple[Output, int, float]:
        start = time.perf_counter()
        total = self.cache.slots
        slots = [piece.slot for piece in pieces]
        first, size = (0, total) if self._whole else window(slots, total)
        length = self._length(max(piece.length for piece in pieces) + width)
        packed, shape = pack(pieces, first, size, width, length, self.cache.capacity)
        packing = time.perf_counter() - start
        output, spent = timed(self.runner, packed, shape, self.cache.shape.device)
        return output, first, packing + spent

    def _length(self, rows: int) -> int:
        if self._static:
            return min(capacity_for(rows), self.cache.capacity)
        step = _STEPS.get(self.cache.shape.dtype, _STEP)
        return min(-(-rows // step) * step, self.cache.capacity)

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


def _wanted(row: Row, num_rows: int) -> int | None:
    """A lone row that wants its last logits gets no others computed."""
    return len(row.tree) - 1 if num_rows == 1 and row.logits == "last" else None


def _cloned(found: tuple[Array, dict[int, Array]]) -> tuple[Array, dict[int, Array]]:
    return found[0].clone(), {layer: states.clone() for layer, states in found[1].items()}


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
