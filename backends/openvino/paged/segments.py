"""Segments: what a paged model takes for one sequence, new tokens behind `past` cached ones.

A chain is one segment. Any other block is one segment with a mask; a tree may instead be one segment for each
root-to-leaf path. Knows no runtime call, only arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from specport.backends.openvino.paged.cache import BlockCache

from specport.core.block import Block
from specport.core.tree import path_to

_NO_BIAS = np.zeros(0, dtype=np.uint8)


@dataclass
class Segment:
    """New tokens of one sequence as the runtime sees it.

    table:     the sequence's own list of blocks, or a fork's.
    past:      cached tokens before the new ones.
    nodes:     the block's token behind each token; padding has none.
    positions: of each token in the text.
    bias:      u8 [n * n] which tokens see which; empty for a chain.
    ahead:     a token sees one behind it.
    states:    state blocks: the one before the first token; then one for each token, or one for the last.
    window:    what its tokens attend to beside one another, by number; -1 = nothing (`conditioned.py`).
    """

    table: list[int]
    past: int
    tokens: Sequence[int]
    nodes: Sequence[int]
    positions: Sequence[int]
    bias: NDArray[np.uint8] = field(default_factory=lambda: _NO_BIAS)
    ahead: bool = False
    states: Sequence[int] = ()
    window: int = -1

    @property
    def interval(self) -> int:
        """Tokens for each state that is written."""
        return 1 if len(self.states) == 1 + len(self.tokens) else len(self.tokens)

    def writes(self, read: int, written: Sequence[int], waste: int) -> None:
        """Set the state blocks. written: for each token but padding, or for the last; waste: for padding."""
        lone = len(written) == 1 < len(self.nodes)
        self.states = (read, *written, *([] if lone else [waste] * (len(self.tokens) - len(written))))

    @property
    def end(self) -> int:
        """Tokens that the table must hold."""
        return self.past + len(self.tokens)


def chain_segment(table: list[int], past: int, block: Block, *, pad_single: bool) -> Segment:
    """Return a chain's segment; `pad_single` gives a lone token a throw-away companion."""
    tokens = block.tokens * 2 if pad_single and len(block) == 1 else block.tokens
    return Segment(table, past, tokens, range(len(block)), range(past, past + len(tokens)))


def masked_segment(table: list[int], past: int, block: Block) -> Segment:
    """Return one segment for any block: its tokens see one another through the mask."""
    positions = [past + position for position in block.positions]
    bias = _NO_BIAS if block.visible is None else block.visible.astype(np.uint8).ravel()
    ahead = looks_ahead(block)
    return Segment(table, past, block.tokens, range(len(block)), positions, bias, ahead)


def looks_ahead(block: Block) -> bool:
    """Return whether a token of a block sees one behind it."""
    return block.visible is not None and bool(np.triu(block.visible, 1).any())


def fork_segments(
    table: list[int], past: int, block: Block, parents: Sequence[int], cache: BlockCache, *, pad_single: bool
) -> list[Segment]:
    """Return one chain for each root-to-leaf path of a tree; the first one writes to `table` itself.

    parents:    [n] as `Block.parents` gives them.
    pad_single: as for a chain; a path has a lone token where a child of the last cached one is a leaf.

    Raises ContextFull where the cache has no block left; no block is taken then.
    """
    inner = set(parents)
    segments: list[Segment] = []
    try:
        for leaf in (node for node in range(len(block)) if node not in inner):
            path = path_to(parents, leaf)
            tokens = [block.tokens[node] for node in path]
            tokens *= 2 if pad_single and len(path) == 1 else 1
            fork = cache.fork(table, past) if segments else table
            segments.append(Segment(fork, past, tokens, path, range(past, past + len(tokens))))
    except BaseException:
        release_forks(segments, table, cache)
        raise
    return segments


def release_forks(segments: Sequence[Segment], table: list[int], cache: BlockCache) -> None:
    """Give back the tables of all segments but the sequence's own."""
    for segment in segments:
        if segment.table is not table:
            cache.release(segment.table)


def cut(segment: Segment, widest: int) -> list[Segment]:
    """Return a chain as pieces of at most `widest` tokens, about equally long: none brings a lone token."""
    total = len(segment.tokens)
    count = -(-total // widest)
    if count == 1:
        return [segment]
    ends = [total * i // count for i in range(count + 1)]
    return [
        replace(
            segment,
            past=segment.past + a,
            tokens=segment.tokens[a:b],
            positions=segment.positions[a:b],
            states=_states(segment, a, b),
        )
        for a, b in pairwise(ends)
    ]


def _states(segment: Segment, start: int, stop: int) -> Sequence[int]:
    """Return the state blocks for a piece of a segment; the block of its end serves between pieces."""
    if segment.interval == 1 or not segment.states:
        return segment.states[start : stop + 1]
    return [segment.states[-1] if start else segment.states[0], *segment.states[1:]]
