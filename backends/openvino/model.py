"""A language model on OpenVINO PagedAttention: the `Model` port of the core.

Inputs of the compiled model, for B sequences that bring N tokens together:

    input_ids, position_ids [N]      the tokens; a tree node's position is its depth
    past_lens [B]                    tokens of each sequence that are in the cache: rollback is a smaller one
    subsequence_begins [B + 1]       where each sequence's tokens start
    block_indices, *_begins [B + 1]  each sequence's blocks
    qq_bias, *_begins [B + 1]        u8 n * n for each tree, 1 = visible; nothing for a chain
    logits_indices [R]               tokens whose logits are wanted

Exact mode never gives a sequence a single token, since one new token takes another attention kernel,
whose rounding differs; two or more give bit-identical logits however they are split. The throw-away
second token costs about 5 % of a step and is never committed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from specport.backends.openvino import graph
from specport.backends.openvino.cache import BLOCK_SIZE, BlockCache, is_cache
from specport.core.ports import Capabilities, Row, StepOutput
from specport.core.tree import TokenTree
from specport.errors import ContextFull

_PLAIN_ROWS = ("f16", "bf16", "f32")  # cache types whose token rows can be copied


@dataclass
class PagedSequence:
    """One sequence's blocks and length; the rows of its last step wait for `commit`."""

    length: int = 0
    table: list[int] = field(default_factory=list)
    pending: int = 0  # nodes of the last step that are not committed yet


class PagedModel:
    """A compiled paged model with its cache. One step at a time: callers serialise.

    compiled:    the paged graph, compiled.
    max_context: most tokens of one sequence.
    pad_single:  exact numerics: a sequence's lone token gets a throw-away companion.
    head_tokens: the ids behind the columns of a cut head; None for a whole one.
    """

    def __init__(
        self,
        compiled: ov.CompiledModel,
        *,
        max_context: int,
        pad_single: bool,
        hidden_layers: tuple[int, ...] = (),
        head_tokens: NDArray[np.int64] | None = None,
        max_cache_tokens: int | None = None,
    ) -> None:
        self._request = compiled.create_infer_request()
        # One block more than the text can fill: a tree at the limit needs room for its padding.
        blocks = -(-(max_cache_tokens or 64 * max_context) // BLOCK_SIZE) + 1
        self.cache = BlockCache(compiled, self._request, blocks)
        self.max_context = max_context
        self.head_tokens = head_tokens
        self.vocab_size = int(compiled.output("logits").get_partial_shape()[2].get_length())
        self._pad_single = pad_single
        self._tensors: dict[str, ov.Tensor] = {}
        kinds = {port.get_element_type().to_string() for port in compiled.inputs if is_cache(port)}
        self.capabilities = Capabilities(
            # Quantised cache rows share scales within a block and cannot be moved.
            tree=kinds <= set(_PLAIN_ROWS),
            batch=True,
            exact=pad_single,
            hidden_states=hidden_layers,
            rollback="index",
        )

    def open(self, capacity: int = 0) -> PagedSequence:
        sequence = PagedSequence()
        self.cache.extend(sequence.table, min(capacity, self.max_context))
        return sequence

    def close(self, handle: PagedSequence) -> None:
        self.cache.release(handle.table)
        handle.length = handle.pending = 0

    def truncate(self, handle: PagedSequence, length: int) -> None:
        if not 0 <= length <= handle.length:
            raise ValueError(f"cannot truncate a sequence of {handle.length} tokens to {length}")
        handle.length, handle.pending = length, 0
        self.cache.release(handle.table, length)

    def commit(self, handle: PagedSequence, kept: Sequence[int]) -> None:
        if len(kept) and kept[-1] >= handle.pending:
            raise ValueError(f"node {kept[-1]} was not in the last step of {handle.pending} nodes")
        moved = [(node, i) for i, node in enumerate(kept) if node != i]
        if moved:
            source = [handle.length + node for node, _ in moved]
            target = [handle.length + i for _, i in moved]
            self.cache.move(handle.table, source, target)
        handle.length += len(kept)
        handle.pending = 0

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            deepest = row.handle.length + max(row.tree.depths())
            if deepest > self.max_context:
                raise ContextFull(f"{deepest} tokens do not fit the model's context of {self.max_context}")
        batch = _flatten(rows, self._pad_single)
        for row, count in zip(rows, batch.counts, strict=True):
            self.cache.extend(row.handle.table, row.handle.length + count)
        for name, values in (batch.inputs | _block_tables(rows)).items():
            self._set(name, values)
        start = time.perf_counter()
        self._request.infer()
        seconds = time.perf_counter() - start
        for row in rows:
            row.handle.pending = len(row.tree)
        total = batch.offsets[-1]
        hidden = {
            layer: self._request.get_tensor(f"hidden.{layer}").data[:total, 0]
            for layer in self.capabilities.hidden_states
        }
        logits = self._request.get_tensor("logits").data[:total, 0]
        return StepOutput(logits, batch.offsets, seconds, hidden)

    def _set(self, name: str, values: NDArray[np.generic]) -> None:
        # The tensor shares the array's memory, so both are kept until the next step.
        self._tensors[name] = tensor = ov.Tensor(values, shared_memory=True)
        self._request.set_tensor(name, tensor)


@dataclass(frozen=True)
class _Batch:
    """The rows of a step, laid end to end.

    counts:  [B] tokens each sequence brings, padding included.
    offsets: [B + 1] where each sequence's logits start.
    """

    counts: list[int]
    offsets: tuple[int, ...]
    inputs: dict[str, NDArray[np.generic]]


def _flatten(rows: Sequence[Row], pad_single: bool) -> _Batch:
    tokens: list[int] = []
    positions: list[int] = []
    counts: list[int] = []
    wanted: list[int] = []
    offsets = [0]
    biases: list[NDArray[np.uint8]] = []
    for row in rows:
        tree, start, past = row.tree, len(tokens), row.handle.length
        if pad_single and len(tree) == 1:
            tree = TokenTree.chain(tree.tokens * 2)
        tokens.extend(tree.tokens)
        if tree.is_chain:
            positions.extend(range(past, past + len(tree)))
            biases.append(_NO_BIAS)
        else:
            positions.extend(past + depth - 1 for depth in tree.depths())
            biases.append(tree.ancestor_mask().astype(np.uint8).ravel())
        counts.append(len(tree))
        real = start + len(row.tree)
        wanted.extend(range(start, real) if row.logits == "all" else (real - 1,))
        offsets.append(len(wanted))
    if pad_single and len(wanted) == 1:
        # A lone row takes another kernel in the head as well.
        wanted.append(wanted[0])
    past_lens = [row.handle.length for row in rows]
    inputs: dict[str, NDArray[np.generic]] = {
        "input_ids": np.array(tokens, dtype=np.int64),
        "position_ids": np.array(positions, dtype=np.int64),
        "past_lens": np.array(past_lens, dtype=np.int32),
        "subsequence_begins": _begins(counts),
        "max_context_len": np.array(max(map(sum, zip(past_lens, counts, strict=True))), dtype=np.int32),
        "qq_bias": np.concatenate(biases),
        "qq_bias_begins": _begins([bias.size for bias in biases]),
        graph.LOGITS_INDICES: np.array(wanted, dtype=np.int32),
    }
    return _Batch(counts, tuple(offsets), inputs)


def _block_tables(rows: Sequence[Row]) -> dict[str, NDArray[np.generic]]:
    tables = [row.handle.table for row in rows]
    return {
        "block_indices": np.array([block for table in tables for block in table], dtype=np.int32),
        "block_indices_begins": _begins([len(table) for table in tables]),
    }


_NO_BIAS = np.zeros(0, dtype=np.uint8)


def _begins(counts: Sequence[int]) -> NDArray[np.int32]:
    return np.cumsum([0, *counts], dtype=np.int32)

