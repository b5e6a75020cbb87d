"""Lays the rows of a step out as the inputs of a paged model. Knows no runtime call, only arrays.

Inputs, for S segments (`segments.py`) that bring N tokens together:

    input_ids, position_ids [N]      the tokens and their positions in the text
    past_lens [S]                    tokens of each segment that are in the cache: rollback is a smaller one
    subsequence_begins [S + 1]       where each segment's tokens start
    block_indices, *_begins [S + 1]  each segment's blocks
    qq_bias, *_begins [S + 1]        u8 n * n for each masked segment, 1 = visible; nothing for a chain
    logits_indices [R]               tokens whose logits are wanted
    hidden_indices [H]               tokens whose hidden states are wanted
    token_type_ids [N] or [0]        1 at the tokens of segments that look ahead

In exact mode a segment of one token has that token twice, the second time as padding. Where the graph chooses
the rows of attention apart from those of the other layers, the padding is in attention only:

    input_ids, position_ids [M]      the M tokens without padding
    attention_rows [N]               which of these M each of the N tokens is; the N tokens are the segments'
    kept_rows [M]                    where each of the M stands among the N
    logits_indices, hidden_indices   places among the M

And for a graph with recurrent states (`states.py`):

    la.block_indices, *_begins [S + 1]  each segment's state blocks: one to read, then those to write
    la.cache_interval [S]            a state is written behind so many tokens each, and behind the last
    la.past_lens [S]                 a multiple of that interval, 0 where there is no state yet
    la.subsequence_begins [S + 1]    subsequence_begins among the tokens that these layers take
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from specport.backends.openvino.graph.recurrent import STATE_BEGINS
from specport.backends.openvino.graph.surgery import (
    ATTENTION_ROWS,
    HIDDEN_INDICES,
    KEPT_ROWS,
    LOGITS_INDICES,
    TOKEN_TYPES,
)
from specport.backends.openvino.paged.segments import Segment, cut

from specport.core.ports import Row, Wanted

Inputs = dict[str, NDArray[np.generic]]
WINDOWS = "windows"  # [N] the window of each token; no input of a graph


@dataclass(frozen=True)
class Part:
    """A part of a step: the runtime's inputs, and which rows of the step's outputs it gives, in its order."""

    inputs: Inputs
    logits: list[int]
    hidden: list[int]


@dataclass(frozen=True)
class Padding:
    """Say what a step is padded to, so that its rows round as those of any other step.

    head:  fewest rows of logits.
    apart: the graph chooses the rows of attention, where alone a lone token of a segment stands twice.
    rows:  fewest rows of the other layers, where the graph does that.
    """

    head: int = 1
    apart: bool = False
    rows: int = 1


class Wishes:
    """Tokens of a step that an output is wanted of, and where each row's begin in that output."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.offsets = [0]

    def add(self, wanted: Wanted, where: Sequence[int]) -> None:
        """Add a row. where: its tokens' places in the step."""
        if wanted != "none":
            self.tokens.extend(where if wanted == "all" else where[-1:])
        self.offsets.append(len(self.tokens))

    def within(self, start: int, stop: int) -> tuple[list[int], list[int]]:
        """Return the wishes from one token of the step to another: their rows, their tokens from `start`."""
        rows = [i for i, token in enumerate(self.tokens) if start <= token < stop]
        return rows, [self.tokens[i] - start for i in rows]


class Batch:
    """The segments of a step, laid end to end.

    segments:   of each row; () for one that brings nothing.
    num_tokens: of all segments, padding too.
    logits, hidden: what is wanted, row by row.
    """

    def __init__(self) -> None:
        self.segments: list[Sequence[Segment]] = []
        self.num_tokens = 0
        self.logits, self.hidden = Wishes(), Wishes()

    def add(self, row: Row, segments: Sequence[Segment]) -> None:
        where: dict[int, int] = {}
        for segment in segments:
            for i, node in enumerate(segment.nodes):
                # Paths share their first nodes; each copy has the same logits.
                where.setdefault(node, self.num_tokens + i)
            self.num_tokens += len(segment.tokens)
        self.segments.append(segments)
        places = [where[node] for node in range(len(row.block))]
        self.logits.add(row.logits, places)
        self.hidden.add(row.hidden, places)

    def skip(self) -> None:
        """Add a row that brings nothing."""
        self.segments.append(())
        self.logits.add("none", ())
        self.hidden.add("none", ())

    def inputs(self, padding: Padding) -> Inputs:
        """Return the runtime's inputs."""
        segments = [segment for row in self.segments for segment in row]
        return _inputs(segments, self.logits.tokens, self.hidden.tokens, padding)

    def parts(self, widest: int, padding: Padding) -> Iterator[Part]:
        """Yield the step as several of at most `widest` tokens, each to be run behind the one before."""
        group: list[Segment] = []
        start = size = 0
        for segment in (piece for row in self.segments for s in row for piece in cut(s, widest)):
            if size + len(segment.tokens) > widest:
                yield self._part(group, start, size, padding)
                group, start, size = [], start + size, 0
            group.append(segment)
            size += len(segment.tokens)
        yield self._part(group, start, size, padding)

    def _part(self, group: Sequence[Segment], start: int, size: int, padding: Padding) -> Part:
        logits, scored = self.logits.within(start, start + size)
        hidden, seen = self.hidden.within(start, start + size)
        return Part(_inputs(group, scored, seen, padding), logits, hidden)


def _inputs(
    segments: Sequence[Segment], logits: Sequence[int], hidden: Sequence[int], padding: Padding
) -> Inputs:
    if logits:
        logits = [*logits, *[logits[-1]] * (padding.head - len(logits))]
    types = [s.ahead for s in segments for _ in s.tokens] if any(s.ahead for s in segments) else []
    inputs: Inputs = {
        "input_ids": np.array([t for s in segments for t in s.tokens], dtype=np.int64),
        "position_ids": np.array([p for s in segments for p in s.positions], dtype=np.int64),
        "past_lens": np.array([s.past for s in segments], dtype=np.int32),
        "subsequence_begins": _begins([len(s.tokens) for s in segments]),
        "max_context_len": np.array(max(s.end for s in segments), dtype=np.int32),
        "block_indices": np.array([b for s in segments for b in s.table], dtype=np.int32),
        "block_indices_begins": _begins([len(s.table) for s in segments]),
        "qq_bias": np.concatenate([s.bias for s in segments]),
        "qq_bias_begins": _begins([s.bias.size for s in segments]),
        LOGITS_INDICES: np.array(logits, dtype=np.int32),
        HIDDEN_INDICES: np.array(hidden, dtype=np.int32),
        TOKEN_TYPES: np.array(types, dtype=np.int32),
    }
    if any(s.states for s in segments):
        inputs |= _state_inputs(segments)
    if any(s.window >= 0 for s in segments):
        inputs[WINDOWS] = np.array([s.window for s in segments for _ in s.tokens], dtype=np.int32)
    return _padded_in_attention(inputs, segments, padding.rows) if padding.apart else inputs


def _state_inputs(segments: Sequence[Segment]) -> Inputs:
    return {
        "la.block_indices": np.array([b for s in segments for b in s.states], dtype=np.int32),
        "la.block_indices_begins": _begins([len(s.states) for s in segments]),
        "la.past_lens": np.array([s.interval if s.past else 0 for s in segments], dtype=np.int32),
        "la.cache_interval": np.array([s.interval for s in segments], dtype=np.int32),
        STATE_BEGINS: _begins([len(s.tokens) for s in segments]),
    }


def _padded_in_attention(inputs: Inputs, segments: Sequence[Segment], fewest: int) -> Inputs:
    """Return inputs whose padding is in attention only, and `fewest` rows at least in the other layers.

    A step whose segments bring one token together keeps its padding everywhere: the matrix products of a lone
    row round differently. More rows than that are copies of the last one, which attention leaves out.
    """
    real = np.array([i < len(s.nodes) for s in segments for i in range(len(s.tokens))])
    if real.sum() == 1:
        real[:] = True
    rows, kept = (np.cumsum(real) - 1).astype(np.int32), np.flatnonzero(real).astype(np.int32)
    kept = np.append(kept, np.repeat(kept[-1:], max(fewest - len(kept), 0)))
    if WINDOWS in inputs:
        inputs = {**inputs, WINDOWS: inputs[WINDOWS][kept]}
    return {
        **inputs,
        "input_ids": inputs["input_ids"][kept],
        "position_ids": inputs["position_ids"][kept],
        LOGITS_INDICES: rows[inputs[LOGITS_INDICES]],
        HIDDEN_INDICES: rows[inputs[HIDDEN_INDICES]],
        ATTENTION_ROWS: rows,
        KEPT_ROWS: kept,
        STATE_BEGINS: np.append(0, rows + 1).astype(np.int32)[inputs["subsequence_begins"]],
    }


def _begins(counts: Sequence[int]) -> NDArray[np.int32]:
    return np.array([0, *accumulate(counts)], dtype=np.int32)
