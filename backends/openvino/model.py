"""A language model on OpenVINO PagedAttention: the `Model` port of the core.

Exact mode never gives a sequence a single token, since one new token takes another attention kernel,
whose rounding differs; two or more give bit-identical logits however they are split. The throw-away
second token costs about 5 % of a step and is never committed. How the rows become the runtime's
inputs is `batch.py`'s business.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.batch import Batch, Segment, chain_segment, fork_segments, masked_segment
from specport.backends.openvino.cache import BLOCK_SIZE, BlockCache, is_cache

from specport.core.ports import Capabilities, Row, StepOutput
from specport.core.tree import TokenTree
from specport.errors import ContextFull

_PLAIN_ROWS = {"f16", "bf16", "f32"}  # cache types whose token rows can be copied


@dataclass
class PagedSequence:
    """One sequence's blocks and length; the nodes of its last step wait for `commit`.

    segments: how the last step's tree was laid out; the first one writes to `table` itself.
    """

    length: int = 0
    table: list[int] = field(default_factory=list)
    pending: TokenTree = field(default_factory=TokenTree)
    segments: list[Segment] = field(default_factory=list)


class PagedModel:
    """A compiled paged model with its cache. One step at a time: callers serialise.

    compiled:    the paged graph, compiled.
    max_context: most tokens of one sequence.
    exact:       a sequence's lone token gets a throw-away companion, and each path of a tree is
                 stepped as a sequence of its own: a mask would leave gaps between a node and its
                 ancestors, and the kernels sum in another order around a gap.
    """

    def __init__(
        self,
        compiled: ov.CompiledModel,
        *,
        max_context: int,
        exact: bool,
        hidden_layers: tuple[int, ...] = (),
        max_cache_tokens: int | None = None,
    ) -> None:
        self._request = compiled.create_infer_request()
        # One block more than the text can fill: a tree at the limit needs room for its padding.
        blocks = -(-(max_cache_tokens or 64 * max_context) // BLOCK_SIZE) + 1
        self.cache = BlockCache(compiled, self._request, blocks)
        self.max_context = max_context
        self.vocab_size = int(compiled.output("logits").get_partial_shape()[2].get_length())
        self._exact = exact
        kinds = {port.get_element_type().to_string() for port in compiled.inputs if is_cache(port)}
        # Quantised rows share scales within a block and cannot be moved to where the path belongs.
        self._mask_trees = not exact and kinds <= _PLAIN_ROWS
        self._inputs: dict[str, NDArray[np.generic]] = {}
        self.capabilities = Capabilities(
            tree=True,
            forked_trees=not self._mask_trees,
            min_width=2 if exact else 1,
            batch=True,
            exact=exact,
            hidden_states=hidden_layers,
            rollback="index",
        )

    def open(self, capacity: int = 0) -> PagedSequence:
        sequence = PagedSequence()
        self.cache.extend(sequence.table, min(capacity, self.max_context))
        return sequence

    def close(self, handle: PagedSequence) -> None:
        self._drop(handle)
        self.cache.release(handle.table)
        handle.length = 0

    def truncate(self, handle: PagedSequence, length: int) -> None:
        if not 0 <= length <= handle.length:
            raise ValueError(f"cannot truncate a sequence of {handle.length} tokens to {length}")
        self._drop(handle)
        handle.length = length
        self.cache.release(handle.table, length)

    def commit(self, handle: PagedSequence, kept: Sequence[int]) -> None:
        path = handle.pending.checked_path(kept)
        if path:
            segment = next(s for s in handle.segments if path[-1] in s.nodes)
            if segment.table is not handle.table:
                handle.table, segment.table = segment.table, handle.table
            elif segment.bias.size and path[-1] != len(path) - 1:
                source = [handle.length + node for node in path]
                self.cache.move(handle.table, source, list(range(handle.length, handle.length + len(path))))
        self._drop(handle)
        handle.length += len(path)

    def _drop(self, handle: PagedSequence) -> None:
        """Forget the last step: give back the blocks of the paths that were not taken."""
        for segment in handle.segments:
            if segment.table is not handle.table:
                self.cache.release(segment.table, segment.shared)
        handle.segments, handle.pending = [], TokenTree()

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            deepest = row.handle.length + max(row.tree.depths())
            if deepest > self.max_context:
                raise ContextFull(f"{deepest} tokens do not fit the model's context of {self.max_context}")
        batch = Batch()
        for row in rows:
            self._drop(row.handle)
            row.handle.segments = self._lay_out(row)
            row.handle.pending = row.tree
            batch.add(row, row.handle.segments)
        for name, values in batch.inputs(pad_head=self._exact).items():
            bound = self._inputs.get(name)
            if bound is not None and bound.shape == values.shape:
                bound[...] = values  # the tensor shares this memory; binding anew costs far more
            else:
                self._inputs[name] = values
                self._request.set_tensor(name, ov.Tensor(values, shared_memory=True))
        start = time.perf_counter()
        self._request.infer(share_inputs=True, share_outputs=True)  # else it copies the logits
        seconds = time.perf_counter() - start
        total = batch.offsets[-1]
        hidden = {
            layer: self._request.get_tensor(f"hidden.{layer}").data[:total, 0]
            for layer in self.capabilities.hidden_states
        }
        logits = self._request.get_tensor("logits").data[:total, 0]
        return StepOutput(logits, tuple(batch.offsets), seconds, hidden)

    def _lay_out(self, row: Row) -> list[Segment]:
        handle, tree = row.handle, row.tree
        if tree.is_chain:
            segments = [chain_segment(handle.table, handle.length, tree, pad_single=self._exact)]
        elif self._mask_trees:
            segments = [masked_segment(handle.table, handle.length, tree)]
        else:
            segments = fork_segments(handle.table, handle.length, tree, self.cache, pad_single=self._exact)
        for segment in segments:
            self.cache.extend(segment.table, segment.past + len(segment.tokens))
        return segments
