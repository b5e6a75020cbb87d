"""The rows of a verifying step: a drafted block as data, and mask slots whose logits judge it (SimSD).

Cui et al., "Simple Speculative Decoding in Diffusion Language Models", arXiv 2606.02544. A mask slot has the
position of its data token. Each data token has the time at which it was revealed, and its slot has the same.
Query i attends to key j of the same block:

    layout     query     data         mask slots
    released   data(t)   t' <= t      t' > t        the mask of the released code
               mask(t)   t' <  t      t' >= t
    same-step  data(t)   t' <= t      none
               mask(t)   t' <  t      t' == t
    grouped    data(t)   t' <= t      none
               mask(t)   t' <  t      those of its own group

In "grouped" each time has a group of slots, one for every position that is still masked then: what the model
saw when it denoised, for n (n + 1) / 2 slots instead of n. In "same-step" a slot lacks the masks behind it.

"released" leaks. A slot at t attends to slots at t' > t, and these attend to the data token of t: with two
layers or more the logits that judge a token depend on that token. They are no conditional distribution then,
and no acceptance rule makes the text lossless. In the other layouts they cannot (`leaks` tells it of any).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.core.block import Block
from specport.diffusion.options import LayoutKind

_DATA = -1  # the group of a data token


@dataclass(frozen=True)
class Layout:
    """Hold the rows of a verifying step.

    block: data tokens, then mask slots.
    data:  position in the drafted block -> row of its data token; only those that a slot attends to.
    slots: position in the drafted block -> row whose logits judge it; only positions that were drafted.
    """

    block: Block
    data: dict[int, int]
    slots: dict[int, int]

    def leaks(self) -> list[int]:
        """Return the positions whose data token reaches its own slot, through any number of layers."""
        seen = self.block.visible
        assert seen is not None
        reach = seen
        while True:
            further = (reach.astype(np.int64) @ seen.astype(np.int64)) > 0
            if (further == reach).all():
                break
            reach = further
        return [
            place for place, row in self.slots.items() if place in self.data and reach[row, self.data[place]]
        ]


@dataclass(frozen=True)
class _Rows:
    """Hold [rows] place, time and group of each row; a data token's group is _DATA."""

    place: NDArray[np.int64]
    time: NDArray[np.int64]
    group: NDArray[np.int64]


def verifying(
    kind: LayoutKind, tokens: Sequence[int], times: Sequence[int], mask_id: int, known: int = 0
) -> Layout:
    """Return the rows that judge a drafted block.

    tokens: [n] the block. times: [n] step at which each token was revealed.
    known:  number of its first tokens that are committed already: data without a slot.
    """
    last = max(times[known:], default=0)
    # No slot attends to what was revealed last, nor does any other token of the block.
    data = [i for i in range(len(tokens)) if times[i] < last]
    rows = [(i, times[i], _DATA) for i in data]
    judged: list[tuple[int, int, int]] = []
    for time in sorted(set(times[known:])):
        for i in range(known, len(tokens)):
            if times[i] == time or (kind == "grouped" and times[i] > time):
                judged.append((i, times[i], time))
    slots = {i: len(rows) + at for at, (i, time, group) in enumerate(judged) if time == group}
    rows += judged
    columns = _Rows(*np.array(rows, dtype=np.int64).reshape(-1, 3).T)
    ids = tuple(int(tokens[i]) if group == _DATA else mask_id for i, _, group in rows)
    block = Block(ids, tuple(int(i) for i in columns.place), _visible(kind, columns))
    return Layout(block, {i: at for at, i in enumerate(data)}, slots)


def num_rows(kind: LayoutKind, length: int) -> int:
    """Return the most rows of a verifying step for a block of so many tokens: each at a time of its own."""
    return length - 1 + (length * (length + 1) // 2 if kind == "grouped" else length)


def _visible(kind: LayoutKind, rows: _Rows) -> NDArray[np.bool_]:
    """Return [rows, rows] what each row attends to."""
    is_data = rows.group == _DATA
    at, other = rows.group[:, None], rows.group[None]
    from_data, to_data = is_data[:, None], is_data[None]
    # A slot's time is that of its group: later positions in "grouped" stand for what is still masked then.
    now = np.where(is_data, rows.time, rows.group)[:, None]
    then = np.where(is_data, rows.time, rows.group)[None]
    slots = ~from_data & (at == other)
    if kind == "released":
        slots = np.where(from_data, then > now, then >= now)
    seen: NDArray[np.bool_] = np.where(to_data, np.where(from_data, then <= now, then < now), slots)
    return seen


def denoising(tokens: Sequence[int]) -> Block:
    """Return the rows of a denoising step: a block of tokens and masks that attend to one another."""
    n = len(tokens)
    return Block(tuple(tokens), tuple(range(n)), np.ones((n, n), dtype=np.bool_))
