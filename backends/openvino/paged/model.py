"""A language model on OpenVINO PagedAttention: the `Model` port of the core.

Exact mode never gives a sequence a single token, since one new token takes another attention kernel,
whose rounding differs; two or more give bit-identical logits however they are split. The throw-away
second token costs about 5 % of a step and is never committed. How the rows become the runtime's
inputs is `batch.py`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from specport.backends.openvino.graph.surgery import HEAD_INPUT
from specport.backends.openvino.paged.batch import (
    Batch,
    Segment,
    chain_segment,
    fork_segments,
    masked_segment,
    release_forks,
)
from specport.backends.openvino.paged.cache import BLOCK_SIZE, BlockCache, is_cache
from specport.backends.openvino.request import Array, HeadRows, Request

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

    request:     of the paged graph.
    max_context: most tokens of one sequence.
    exact:       a sequence's lone token gets a throw-away companion, and each path of a tree is
                 stepped as a sequence of its own: a mask would leave gaps between a node and its
                 ancestors, and the kernels sum in another order around a gap.
    head_rows:   gives rows of the whole head, where that of the graph is cut.
    cached:      requests of the graphs that hold the cache, where it is not that one.

    `widest`: most tokens that the runtime is given at once, 0 = any; a wider step is run in parts.
    """

    def __init__(
        self,
        request: Request,
        *,
        max_context: int,
        exact: bool,
        hidden_layers: tuple[int, ...] = (),
        head_rows: HeadRows | None = None,
        max_cache_tokens: int | None = None,
        cached: Sequence[Request] = (),
    ) -> None:
        self._request, self._head_rows = request, head_rows
        # One block more than the text can fill: a tree at the limit needs room for its padding.
        blocks = -(-(max_cache_tokens or 64 * max_context) // BLOCK_SIZE) + 1
        cached = cached or (request,)
        self.cache = BlockCache(cached, blocks)
        self.max_context = max_context
        self.vocab_size = int(request.compiled.output("logits").get_partial_shape()[2].get_length())
        self._exact = exact
        self.widest = 0
        ports = [port for part in cached for port in part.compiled.inputs if is_cache(port)]
        kinds = {port.get_element_type().to_string() for port in ports}
        # Quantised rows share scales within a block and cannot be moved to where the path belongs.
        self._mask_trees = not exact and kinds <= _PLAIN_ROWS
        self.capabilities = Capabilities(
            tree=True,
            forked_trees=not self._mask_trees,
            min_width=2 if exact else 1,
            batch=True,
            exact=exact,
            hidden_states=hidden_layers,
            head_rows=head_rows is not None,
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
        release_forks(handle.segments, handle.table, self.cache)
        handle.segments, handle.pending = [], TokenTree()

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            self._check_room(row)
        with self._all_or_nothing(rows):
            batch = Batch()
            for row in rows:
                self._lay_out(row)
                batch.add(row, row.handle.segments)
            return self._run(batch)

    @contextmanager
    def _all_or_nothing(self, rows: Sequence[Row]) -> Iterator[None]:
        """Give back the blocks that the rows of a step took, all of them, where the step fails."""
        blocks = [len(row.handle.table) for row in rows]
        try:
            yield
        except BaseException:
            for row, count in zip(rows, blocks, strict=True):
                self._drop(row.handle)
                self.cache.release(row.handle.table, count * BLOCK_SIZE)
            raise

    def _run(self, batch: Batch) -> StepOutput:
        """Run a step, in parts where it is too wide."""
        total = batch.offsets[-1]
        if not self._too_wide(batch.num_tokens):
            seconds = self._infer(batch.inputs(pad_head=self._exact))
            found = self._outputs(total)
        else:
            seconds, found = 0.0, {}
            for part in batch.parts(self.widest, pad_head=self._exact):
                seconds += self._infer(part.inputs)
                for name, rows in self._outputs(len(part.rows)).items():
                    whole = found.setdefault(name, np.empty((total, *rows.shape[1:]), rows.dtype))
                    whole[part.rows] = rows
        hidden = {layer: found[f"hidden.{layer}"] for layer in self.capabilities.hidden_states}
        return StepOutput(found["logits"], tuple(batch.offsets), seconds, hidden, found.get(HEAD_INPUT))

    def _too_wide(self, num_tokens: int) -> bool:
        return 0 < self.widest < num_tokens

    def _infer(self, inputs: Mapping[str, Array]) -> float:
        """Seconds that it took."""
        return self._request(inputs)

    def _outputs(self, num_rows: int) -> dict[str, Array]:
        """The first rows of each output, valid until the next step."""
        names = ["logits", *(f"hidden.{layer}" for layer in self.capabilities.hidden_states)]
        names += [HEAD_INPUT] if self._head_rows else []
        return {name: self._request.output(name).data[:num_rows, 0] for name in names}

    def head_rows(self, tokens: Sequence[int]) -> Array:
        assert self._head_rows is not None  # as the capabilities say
        return self._head_rows(tokens)

    def _check_room(self, row: Row, ahead: int = 0) -> None:
        """Raises ContextFull where the row does not fit, behind `ahead` tokens that are not committed."""
        deepest = row.handle.length + ahead + max(row.tree.depths())
        if deepest > self.max_context:
            raise ContextFull(f"{deepest} tokens do not fit the model's context of {self.max_context}")

    def _lay_out(self, row: Row) -> None:
        """Forget the handle's last step and take the blocks of this one."""
        handle, tree = row.handle, row.tree
        self._drop(handle)
        if tree.is_chain:
            segments = [chain_segment(handle.table, handle.length, tree, pad_single=self._exact)]
        elif self._mask_trees:
            segments = [masked_segment(handle.table, handle.length, tree)]
        else:
            segments = fork_segments(handle.table, handle.length, tree, self.cache, pad_single=self._exact)
        # Before any of them grows: what a failure leaves behind is then found here and given back.
        handle.segments, handle.pending = segments, tree
        for segment in segments:
            self.cache.extend(segment.table, segment.past + len(segment.tokens))
