"""A language model of fixed shapes on OpenVINO: the `Model` port of the core, for devices like the NPU.

A round of decoding always brings the same number of tokens, a prompt is read in wider pieces, and each of
these widths is compiled once. Every sequence owns a cache of the full capacity; a step writes its rows behind
the committed ones, so that undoing them is a smaller length. What one width does is `runner.py`'s
business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from specport.backends.openvino.static.runner import Array, Cache, Output, StaticRunner

from specport.core.copied_blocks import CopiedBlocks
from specport.core.ports import (
    CachedSequence,
    Capabilities,
    CheckedModel,
    Refusal,
    Row,
    StepOutput,
    Wanted,
)
from specport.errors import ContextFull


@dataclass
class StaticSequence(CachedSequence):
    """Hold one sequence's cache, empty once it is closed."""

    cache: Cache


class StaticModel(CheckedModel[StaticSequence]):
    """Compiled widths of one model. One step at a time: callers serialise.

    decode:      widths of a round of decoding, narrowest first; each gives all its logits.
    read:        the width that prompts are read in; gives the last logits.
    max_context: most tokens of one sequence; the runners' capacity has room for padding behind it.
    cache_bytes: most memory of all caches together, those of closed sequences too; None = any.
    kept_bytes:  most memory of blocks that outlive their sequence, beside the caches; 0 = none are kept.
    """

    def __init__(
        self,
        decode: Sequence[StaticRunner],
        read: StaticRunner,
        *,
        max_context: int,
        exact: bool,
        hidden_layers: tuple[int, ...] = (),
        cache_bytes: int | None = None,
        kept_bytes: int = 0,
    ) -> None:
        self._decode, self._read = decode, read
        if kept_bytes:
            self.prefix_blocks = CopiedBlocks(self, read.token_bytes, kept_bytes)
        self.vocab_size, self.max_context = read.vocab_size, max_context
        self._free: list[Cache] = []  # of closed sequences: a new one costs a few milliseconds
        self._num_caches = 0
        self._max_caches = None if cache_bytes is None else cache_bytes // read.cache_bytes
        self.capabilities = Capabilities(
            visibility="chain",
            min_width=decode[0].width,
            batch=False,
            exact=exact,
            hidden_layers=hidden_layers,
            buckets=tuple(runner.width for runner in decode),
        )

    @property
    def cache_usage(self) -> float | None:
        most = self._max_caches
        return (self._num_caches - len(self._free)) / max(1, most) if most is not None else None

    def room(self, handle: StaticSequence | None = None) -> int:
        if handle is not None:
            return self.max_context - handle.length
        more = self._max_caches is None or self._num_caches < self._max_caches
        return self.max_context if self._free or more else 0

    def open_checked(self, capacity: int) -> StaticSequence:
        """Open a sequence with the whole cache, whatever `capacity` is: its shape is compiled in."""
        room = self.room()
        if capacity > room or not room:
            raise ContextFull(f"there is no room for {capacity} tokens, only for {room}")
        if self._free:
            return StaticSequence(self._free.pop())
        try:
            cache = self._read.new_cache()
        except MemoryError as error:
            self._max_caches = self._num_caches  # there is no more, whatever was allowed
            raise ContextFull("there is no memory for another sequence's cache") from error
        self._num_caches += 1
        return StaticSequence(cache)

    def fork_checked(self, handle: StaticSequence, length: int) -> StaticSequence:
        """Open a sequence with a copy of these rows: caches of a compiled shape cannot share them."""
        fork = self.open()
        for array, source in zip(fork.cache, handle.cache, strict=False):  # a closed one has none
            array[:, :, :, :length] = source[:, :, :, :length]
        fork.settle(length)
        return fork

    def read_rows(self, handle: StaticSequence, start: int, stop: int) -> NDArray[np.uint8]:
        """Return a copy of these rows' bytes (`core.copied_blocks`)."""
        rows = [np.ascontiguousarray(array[:, :, :, start:stop]) for array in handle.cache]
        return np.concatenate([part.reshape(-1).view(np.uint8) for part in rows])

    def write_rows(self, handle: StaticSequence, content: NDArray[np.uint8], num_tokens: int) -> None:
        """Append rows from `read_rows` as committed tokens."""
        begin = 0
        for array in handle.cache:
            rows = array[:, :, :, handle.length : handle.length + num_tokens]
            part = content[begin : begin + rows.nbytes]
            rows[...] = part.view(array.dtype).reshape(rows.shape)
            begin += rows.nbytes
        handle.settle(handle.length + num_tokens)

    def close(self, handle: StaticSequence) -> None:
        if handle.cache:
            self._free.append(handle.cache)
        handle.cache = []
        handle.settle(0)

    def commit(self, handle: StaticSequence, nodes: Sequence[int]) -> None:
        kept = handle.pending.checked_nodes(nodes)
        if kept and kept[-1] != len(kept) - 1:
            raise ValueError(f"{kept} are no beginning of the last step's chain")
        handle.settle(handle.length + len(kept))  # its rows are where they belong

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            if not len(row.block):
                raise ValueError("a row brings at least one token")
            if not row.block.is_chain:
                raise ValueError(
                    f"a block of {len(row.block)} tokens is no chain; this model steps chains only"
                )
        parts: list[Output] = []
        offsets, hidden_offsets, seconds = [0], [0], 0.0
        refused: dict[int, Refusal] = {}
        for i, row in enumerate(rows):
            found: list[Output] = []
            if len(row.block) > self.room(row.handle):
                refused[i] = "context"
            else:
                row.handle.pending = row.block
                found = self._run(row, alone=len(rows) == 1)
            seconds += sum(part.seconds for part in found)
            parts += found
            offsets.append(offsets[-1] + sum(len(part.logits) for part in found))
            states = sum(len(next(iter(part.hidden.values()), ())) for part in found)
            hidden_offsets.append(hidden_offsets[-1] + states)
        logits = (
            _joined([part.logits for part in parts]) if parts else np.empty((0, self.vocab_size), np.float32)
        )
        hidden = {}
        if hidden_offsets[-1]:
            layers = self.capabilities.hidden_layers
            hidden = {layer: _joined([part.hidden[layer] for part in parts]) for layer in layers}
        return StepOutput(logits, tuple(offsets), seconds, refused, hidden, tuple(hidden_offsets))

    def _run(self, row: Row, *, alone: bool) -> list[Output]:
        """Return what a row wants of each piece that it is read in, copied unless it is one and alone."""
        tokens, handle = row.block.tokens, row.handle
        found: list[Output] = []
        start = 0
        while start < len(tokens):
            runner = self._runner(len(tokens) - start, row)
            piece = tokens[start : start + runner.width]
            output = runner.run(handle.cache, handle.length + start, piece)
            start += len(piece)
            wanted = _wanted(output, row, ends=start == len(tokens))
            # The next run writes over what this one gave.
            found.append(wanted if alone and len(piece) == len(tokens) else _copied(wanted))
        return found

    def _runner(self, num_tokens: int, row: Row) -> StaticRunner:
        """Return the narrowest that takes all; with all logits wanted, a chain is read in decode steps."""
        for runner in self._decode:
            if runner.width >= num_tokens:
                return runner
        return self._decode[-1] if row.logits == "all" else self._read


def _wanted(output: Output, row: Row, *, ends: bool) -> Output:
    """Return the part of a piece's output that a row wants. ends: the piece is the row's last."""
    hidden = {layer: _part(states, row.hidden, ends) for layer, states in output.hidden.items()}
    return Output(_part(output.logits, row.logits, ends), hidden, output.seconds)


def _part(rows: Array, wanted: Wanted, ends: bool) -> Array:
    if wanted == "all":
        return rows
    return rows[-1:] if wanted == "last" and ends else rows[:0]


def _copied(output: Output) -> Output:
    hidden = {layer: states.copy() for layer, states in output.hidden.items()}
    return Output(output.logits.copy(), hidden, output.seconds)


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
