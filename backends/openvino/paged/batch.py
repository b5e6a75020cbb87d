"""Lays the rows of a step out as the inputs of a paged model. Knows no runtime call, only arrays.

A *segment* is what the runtime takes for one sequence: new tokens behind `past` cached ones. A chain
is one segment. A tree is one segment with a mask, or one segment for each root-to-leaf path.

Inputs, for S segments that bring N tokens together:

    input_ids, position_ids [N]      the tokens; a tree node's position is its depth
    past_lens [S]                    tokens of each segment that are in the cache: rollback is a smaller one
    subsequence_begins [S + 1]       where each segment's tokens start
    block_indices, *_begins [S + 1]  each segment's blocks
    qq_bias, *_begins [S + 1]        u8 n * n for each masked segment, 1 = visible; nothing for a chain
    logits_indices [R]               tokens whose logits are wanted
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray
from specport.backends.openvino.graph.surgery import LOGITS_INDICES
from specport.backends.openvino.paged.cache import BLOCK_SIZE, BlockCache

from specport.core.ports import Row
from specport.core.tree import TokenTree

_NO_BIAS = np.zeros(0, dtype=np.uint8)


@dataclass
class Segment:
    """New tokens of one sequence as the runtime sees it.

    table:  the sequence's blocks; the first `shared` tokens of them belong to the trunk as well.
    nodes:  the tree's node behind each token; padding has none.
    """

    table: list[int]
    past: int
    tokens: Sequence[int]
    nodes: Sequence[int]
    positions: Sequence[int]
    bias: NDArray[np.uint8] = field(default_factory=lambda: _NO_BIAS)
    shared: int = 0


def chain_segment(table: list[int], past: int, tree: TokenTree, *, pad_single: bool) -> Segment:
    """A chain; `pad_single` gives a lone token a throw-away companion."""
    tokens = tree.tokens * 2 if pad_single and len(tree) == 1 else tree.tokens
    return Segment(table, past, tokens, range(len(tree)), range(past, past + len(tokens)))


def masked_segment(table: list[int], past: int, tree: TokenTree) -> Segment:
    """A tree whose nodes see their ancestors through the mask."""
    positions = [past + depth - 1 for depth in tree.depths()]
    bias = tree.ancestor_mask().astype(np.uint8).ravel()
    return Segment(table, past, tree.tokens, range(len(tree)), positions, bias)


def fork_segments(
    table: list[int], past: int, tree: TokenTree, cache: BlockCache, *, pad_single: bool
) -> list[Segment]:
    """Return one chain for each root-to-leaf path. Full blocks are shared, a part-filled one is copied.

    `pad_single`: as for a chain; a path has a lone token where a child of the last cached one is a leaf.
    Raises ContextFull where the cache has no block left; no block is taken then.
    """
    parents = set(tree.parents)
    whole = past // BLOCK_SIZE
    segments: list[Segment] = []
    try:
        for leaf in (node for node in range(len(tree)) if node not in parents):
            path = tree.path(leaf)
            tokens = [tree.tokens[node] for node in path]
            tokens *= 2 if pad_single and len(path) == 1 else 1
            fork = table if not segments else table[:whole]
            positions = range(past, past + len(tokens))
            segments.append(Segment(fork, past, tokens, path, positions, shared=whole * BLOCK_SIZE))
            if fork is not table and past % BLOCK_SIZE:
                cache.extend(fork, past)
                cache.copy_block(table[whole], fork[whole])
    except BaseException:
        release_forks(segments, table, cache)
        raise
    return segments


def release_forks(segments: Sequence[Segment], table: list[int], cache: BlockCache) -> None:
    """Give back the blocks of all segments that are not shared with the sequence's own `table`."""
    for segment in segments:
        if segment.table is not table:
            cache.release(segment.table, segment.shared)


@dataclass(frozen=True)
class Part:
    """A part of a step: the runtime's inputs, and which rows of the step's logits it gives, in its order."""

    inputs: dict[str, NDArray[np.generic]]
    rows: list[int]


class Batch:
    """The segments of a step, laid end to end.

    offsets:    [rows + 1] where each row's logits start.
    segments:   of each row.
    num_tokens: of all segments, padding too.
    """

    def __init__(self) -> None:
        self.offsets = [0]
        self.segments: list[Sequence[Segment]] = []
        self.num_tokens = 0
        self._wanted: list[int] = []

    def add(self, row: Row, segments: Sequence[Segment]) -> None:
        where: dict[int, int] = {}
        for segment in segments:
            for i, node in enumerate(segment.nodes):
                # Paths share their first nodes; each copy has the same logits.
                where.setdefault(node, self.num_tokens + i)
            self.num_tokens += len(segment.tokens)
        self.segments.append(segments)
        last = len(row.tree) - 1
        self._wanted.extend(where[node] for node in (range(last + 1) if row.logits == "all" else (last,)))
        self.offsets.append(len(self._wanted))

    def skip(self) -> None:
        """A row that brings nothing."""
        self.segments.append(())
        self.offsets.append(len(self._wanted))

    def inputs(self, *, pad_head: bool) -> dict[str, NDArray[np.generic]]:
        """The runtime's inputs. `pad_head`: a lone row of logits gets a throw-away companion too."""
        segments = [segment for row in self.segments for segment in row]
        return _inputs(segments, self._wanted, pad_head=pad_head)

    def parts(self, widest: int, *, pad_head: bool) -> Iterator[Part]:
        """The step as several of at most `widest` tokens, each to be run behind the one before."""
        group: list[Segment] = []
        start = size = 0
        for segment in (piece for row in self.segments for s in row for piece in _cut(s, widest)):
            if size + len(segment.tokens) > widest:
                yield self._part(group, start, size, pad_head=pad_head)
                group, start, size = [], start + size, 0
            group.append(segment)
            size += len(segment.tokens)
        yield self._part(group, start, size, pad_head=pad_head)

    def _part(self, group: Sequence[Segment], start: int, size: int, *, pad_head: bool) -> Part:
        here = [i for i, token in enumerate(self._wanted) if start <= token < start + size]
        # A graph wants some row of logits even in the middle of a prompt.
        wanted = [self._wanted[i] - start for i in here] or [0]
        return Part(_inputs(group, wanted, pad_head=pad_head), here)


def _inputs(
    segments: Sequence[Segment], wanted: list[int], *, pad_head: bool
) -> dict[str, NDArray[np.generic]]:
    counts = [len(s.tokens) for s in segments]
    wanted = wanted * 2 if pad_head and len(wanted) == 1 else wanted
    return {
        "input_ids": np.array([t for s in segments for t in s.tokens], dtype=np.int64),
        "position_ids": np.array([p for s in segments for p in s.positions], dtype=np.int64),
        "past_lens": np.array([s.past for s in segments], dtype=np.int32),
        "subsequence_begins": _begins(counts),
        "max_context_len": np.array(
            max(s.past + n for s, n in zip(segments, counts, strict=True)), dtype=np.int32
        ),
        "block_indices": np.array([b for s in segments for b in s.table], dtype=np.int32),
        "block_indices_begins": _begins([len(s.table) for s in segments]),
        "qq_bias": np.concatenate([s.bias for s in segments]),
        "qq_bias_begins": _begins([s.bias.size for s in segments]),
        LOGITS_INDICES: np.array(wanted, dtype=np.int32),
    }


def _cut(segment: Segment, widest: int) -> list[Segment]:
    """A chain as pieces of at most `widest` tokens, about the same number each: none brings a lone token."""
    total = len(segment.tokens)
    count = -(-total // widest)
    if count == 1:
        return [segment]
    ends = [total * i // count for i in range(count + 1)]
    return [
        replace(segment, past=segment.past + a, tokens=segment.tokens[a:b], positions=segment.positions[a:b])
        for a, b in pairwise(ends)
    ]


def _begins(counts: Sequence[int]) -> NDArray[np.int32]:
    return np.array([0, *accumulate(counts)], dtype=np.int32)
