"""A language model of fixed shapes on OpenVINO: the `Model` port of the core, for devices like the NPU.

A round of decoding always brings the same number of tokens, a prompt is read in wider pieces, and each of
these widths is compiled once. Every sequence owns a cache of the full capacity; a step writes its rows behind
the committed ones, so that undoing them is a smaller length. What one width does is `runner.py`'s
business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from specport.backends.openvino.static.runner import Array, Cache, Output, StaticRunner

from specport.core.ports import Capabilities, Row, StepOutput
from specport.core.tree import TokenTree
from specport.errors import ContextFull


@dataclass
class StaticSequence:
    """One sequence's cache, empty once it is closed, and length; `pending` waits for `commit`."""

    cache: Cache
    length: int = 0
    pending: TokenTree = field(default_factory=TokenTree)


class StaticModel:
    """Compiled widths of one model. One step at a time: callers serialise.

    decode:      widths of a round of decoding, narrowest first; each gives all its logits.
    read:        the width that prompts are read in; gives the last logits.
    max_context: most tokens of one sequence; the runners' capacity has room for padding behind it.
    """

    def __init__(
        self,
        decode: Sequence[StaticRunner],
        read: StaticRunner,
        *,
        max_context: int,
        exact: bool,
        hidden_layers: tuple[int, ...] = (),
    ) -> None:
        self._decode, self._read = decode, read
        self.vocab_size, self.max_context = read.vocab_size, max_context
        self._free: list[Cache] = []  # of closed sequences: a new one costs a few milliseconds
        self.capabilities = Capabilities(
            tree=False,
            min_width=decode[0].width,
            batch=False,
            exact=exact,
            hidden_states=hidden_layers,
            rollback="index",
            buckets=tuple(runner.width for runner in decode),
        )

    def open(self, capacity: int = 0) -> StaticSequence:
        """Takes the whole cache at once, whatever `capacity` is: its shape is compiled in."""
        return StaticSequence(self._free.pop() if self._free else self._read.new_cache())

    def close(self, handle: StaticSequence) -> None:
        if handle.cache:
            self._free.append(handle.cache)
        handle.cache, handle.length, handle.pending = [], 0, TokenTree()

    def truncate(self, handle: StaticSequence, length: int) -> None:
        if not 0 <= length <= handle.length:
            raise ValueError(f"cannot truncate a sequence of {handle.length} tokens to {length}")
        handle.length, handle.pending = length, TokenTree()

    def commit(self, handle: StaticSequence, kept: Sequence[int]) -> None:
        handle.length += len(handle.pending.checked_path(kept))  # its rows are where they belong
        handle.pending = TokenTree()

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            end = row.handle.length + len(row.tree)
            if not row.tree.is_chain:
                raise ValueError(f"a tree of {len(row.tree)} nodes; this model steps chains only")
            if end > self.max_context:
                raise ContextFull(f"{end} tokens do not fit the model's context of {self.max_context}")
        parts: list[Output] = []
        offsets, seconds = [0], 0.0
        for row in rows:
            row.handle.pending = row.tree
            found, spent = self._run(row)
            seconds += spent
            # The next row's run writes over what this one gave.
            parts += found if len(rows) == 1 else map(_copied, found)
            offsets.append(offsets[-1] + sum(len(part.logits) for part in found))
        logits = _joined([part.logits for part in parts])
        layers = self.capabilities.hidden_states
        hidden = {layer: _joined([part.hidden[layer] for part in parts]) for layer in layers}
        return StepOutput(logits, tuple(offsets), seconds, hidden)

    def _run(self, row: Row) -> tuple[list[Output], float]:
        """What a row wants of each piece that it is read in, and the seconds."""
        tokens, handle = row.tree.tokens, row.handle
        found: list[Output] = []
        start, seconds = 0, 0.0
        while start < len(tokens):
            runner = self._runner(len(tokens) - start, row)
            piece = tokens[start : start + runner.width]
            output = runner.run(handle.cache, handle.length + start, piece)
            start, seconds = start + len(piece), seconds + output.seconds
            if row.logits == "all":
                found.append(output if start == len(piece) == len(tokens) else _copied(output))
            elif start == len(tokens):
                found.append(_last(output))
        return found, seconds

    def _runner(self, num_tokens: int, row: Row) -> StaticRunner:
        """The narrowest that takes all; a long chain goes in decode steps if all its logits are wanted."""
        for runner in self._decode:
            if runner.width >= num_tokens:
                return runner
        return self._read if row.logits == "last" else self._decode[-1]


def _last(output: Output) -> Output:
    hidden = {layer: states[-1:] for layer, states in output.hidden.items()}
    return Output(output.logits[-1:], hidden, output.seconds)


def _copied(output: Output) -> Output:
    hidden = {layer: states.copy() for layer, states in output.hidden.items()}
    return Output(output.logits.copy(), hidden, output.seconds)


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
