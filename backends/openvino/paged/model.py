"""A language model on OpenVINO PagedAttention: the `Model` port of the core.

In exact mode attention never gets a single token of a sequence, since one new token takes another kernel,
whose rounding differs; two or more give bit-identical logits however they are split. A lone token therefore
stands there twice, and its copy is never committed. Where several sequences bring a token each, the other
layers have no copies (`batch.py`). A sequence alone has its copy everywhere: 5 % of a step with AVX-512, 20 %
with AVX2. `batch.py` turns rows into the runtime's inputs, `cache.py` owns the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from specport.backends.openvino.graph.surgery import ATTENTION_ROWS, HEAD_INPUT, TOKEN_TYPES
from specport.backends.openvino.paged.batch import Batch, Padding
from specport.backends.openvino.paged.cache import BLOCK_SIZE, BlockCache, is_cache
from specport.backends.openvino.paged.prefix import PagedBlocks
from specport.backends.openvino.paged.segments import (
    Segment,
    chain_segment,
    fork_segments,
    looks_ahead,
    masked_segment,
    release_forks,
)
from specport.backends.openvino.request import Array, HeadRows, Request

from specport.core.ports import CachedSequence, Capabilities, CheckedModel, Refusal, Row, StepOutput
from specport.errors import ContextFull

_PLAIN_ROWS = {"f16", "bf16", "f32"}  # cache types whose token rows can be copied
_MOST_TEXTS = 64  # of the longest that the context allows: the cache of a small model ends here


@dataclass
class PagedSequence(CachedSequence):
    """Hold one sequence's blocks and length; the tokens of its last step wait for `commit`.

    segments: how the last step's block was laid out; the first one writes to `table` itself.
    """

    table: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)


class PagedModel(CheckedModel[PagedSequence]):
    """A compiled paged model with its cache. One step at a time: callers serialise.

    request:     of the paged graph.
    max_context: most tokens of one sequence.
    exact:       a sequence's lone token gets a throw-away copy, and each path of a tree is
                 stepped as a sequence of its own: a mask would leave gaps between a node and its
                 ancestors, and the kernels sum in another order around a gap.
    head_rows:   gives rows of the whole head, where that of the graph is cut.
    cache_bytes: most memory of the cache; None = as much as `_MOST_TEXTS` texts need.
    cached:      requests of the graphs that hold the cache, where it is not that one.

    `widest`: most tokens that the runtime is given at once, 0 = any; a wider step is run in parts.
    `can_mask`: whether the graph could take a tree as one masked row.
    `can_keep`: whether all that a sequence is made of is in the blocks of its cache.
    """

    can_mask = can_keep = True

    def __init__(
        self,
        request: Request,
        *,
        max_context: int,
        exact: bool,
        hidden_layers: tuple[int, ...] = (),
        head_rows: HeadRows | None = None,
        cache_bytes: int | None = None,
        cached: Sequence[Request] = (),
    ) -> None:
        self._request, self.head_rows = request, head_rows
        cached = cached or (request,)
        # One block more than the texts can fill: a tree at the limit needs room for its padding.
        self.cache = BlockCache(cached, -(-_MOST_TEXTS * max_context // BLOCK_SIZE) + 1, cache_bytes)
        if self.can_keep:
            self.prefix_blocks = PagedBlocks(self.cache, self._begin)
        self.max_context = max_context
        self.vocab_size = int(request.compiled.output("logits").get_partial_shape()[2].get_length())
        self._exact = exact
        self.widest = 0
        ports = [port for part in cached for port in part.compiled.inputs if is_cache(port)]
        kinds = {port.get_element_type().to_string() for port in ports}
        # Quantised rows share scales within a block and cannot be moved to where the path belongs.
        self._masks = self.can_mask and not exact and kinds <= _PLAIN_ROWS
        inputs = {name for part in (*cached, request) for port in part.compiled.inputs for name in port.names}
        self._padding = Padding(2 if exact else 1, ATTENTION_ROWS in inputs)
        # Outputs with a row for each token whose logits, and whose hidden states, are wanted.
        self._scored = ["logits", *([HEAD_INPUT] if head_rows else [])]
        self._seen = [f"hidden.{layer}" for layer in hidden_layers]
        self.capabilities = Capabilities(
            visibility="any" if self._masks and TOKEN_TYPES in inputs else "tree",
            forked_trees=not self._masks,
            min_width=2 if exact and not self._padding.apart else 1,
            batch=True,
            exact=exact,
            gather=self._masks,
            hidden_layers=hidden_layers,
        )

    def widen(self, fewest: int) -> bool:
        """Compute at least so many rows in every step. Return whether this graph can."""
        if self._padding.apart:
            self._padding = Padding(fewest, True, fewest)
        return self._padding.apart

    @property
    def cache_usage(self) -> float:
        return self.cache.usage

    def room(self, handle: PagedSequence | None = None) -> int:
        sequence = handle or self._new()
        left = self.cache.room(sequence.table, sequence.length, self._start(sequence))
        left = 0 if self._exact and left < 2 else left  # a lone token would need its companion
        return min(left, self.max_context - sequence.length)

    def open_checked(self, capacity: int) -> PagedSequence:
        if capacity > self.room():
            raise ContextFull(f"there is no room for {capacity} tokens, only for {self.room()}")
        sequence = self._new()
        self.cache.extend(sequence.table, capacity)
        return sequence

    def fork_checked(self, handle: PagedSequence, length: int) -> PagedSequence:
        return self._begin(self.cache.fork(handle.table, length), length)

    def _new(self) -> PagedSequence:
        return PagedSequence()

    def _begin(self, table: list[int], length: int) -> PagedSequence:
        """Return a sequence that begins with these blocks, which hold so many committed tokens."""
        sequence = self._new()
        sequence.table = table
        sequence.settle(length)
        return sequence

    def _start(self, handle: PagedSequence) -> int:
        """Return the first position that the sequence's next step writes to."""
        return handle.length

    def close(self, handle: PagedSequence) -> None:
        self._drop(handle)
        self.cache.release(handle.table)
        handle.length = 0

    def truncate_checked(self, handle: PagedSequence, length: int) -> None:
        self._drop(handle)
        handle.length = length
        self.cache.release(handle.table, length)

    def commit(self, handle: PagedSequence, nodes: Sequence[int]) -> None:
        kept = self._kept(handle, nodes)
        if kept:
            segment = next(s for s in handle.segments if kept[-1] in s.nodes)
            if segment.table is not handle.table:
                handle.table, segment.table = segment.table, handle.table
            elif self._masks and kept[-1] != len(kept) - 1:
                start = handle.length
                self.cache.move(handle.table, [start + n for n in kept], range(start, start + len(kept)))
        self._drop(handle)
        handle.length += len(kept)

    def _kept(self, handle: PagedSequence, nodes: Sequence[int]) -> list[int]:
        """Return the tokens of the last step to keep. Raises ValueError where they cannot be kept."""
        kept = handle.pending.checked_nodes(nodes)
        if kept and not self._masks and not _is_path(handle.segments, kept):
            raise ValueError(f"{kept} are no path from the beginning of the last step's block")
        return kept

    def _drop(self, handle: PagedSequence) -> None:
        """Forget the last step: give back the blocks of the paths that were not taken."""
        release_forks(handle.segments, handle.table, self.cache)
        handle.segments = []
        handle.settle(handle.length)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        parents = self._parents(rows)
        with self._all_or_nothing(rows):
            batch, refused = self._laid_out(rows, parents)
            return self._run(batch, refused)

    def _parents(self, rows: Sequence[Row]) -> list[tuple[int, ...] | None]:
        """Return the parents of each tree that is to be forked, None for other blocks.

        Raises ValueError for blocks that the capabilities rule out.
        """
        found: list[tuple[int, ...] | None] = []
        for row in rows:
            block, parents = row.block, None
            if not len(block):
                raise ValueError("a row brings at least one token")
            if not block.is_chain and self.capabilities.visibility != "any":
                parents = None if self._masks else block.parents()
                if looks_ahead(block) if self._masks else parents is None:
                    raise ValueError("a block that is neither a chain nor a tree; this model steps no others")
            found.append(parents)
        return found

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

    def _laid_out(
        self, rows: Sequence[Row], parents: Sequence[tuple[int, ...] | None]
    ) -> tuple[Batch, dict[int, Refusal]]:
        """Return the rows that fit as a batch, and why the others do not."""
        batch, refused = Batch(), dict[int, Refusal]()
        for i, row in enumerate(rows):
            if why := self._refusal(row, parents[i]):
                refused[i] = why
                batch.skip()
            else:
                batch.add(row, row.handle.segments)
        return batch, refused

    def _refusal(self, row: Row, parents: tuple[int, ...] | None) -> Refusal | None:
        """Take the blocks of a row's step, or return why that cannot be; its sequence is as it was then."""
        handle, block = row.handle, row.block
        if handle.length + block.reach > self.max_context:
            return "context"
        self._drop(handle)
        held = len(handle.table)
        try:
            handle.segments, handle.pending = self._segments(row, parents), block
            for segment in handle.segments:
                self.cache.extend(segment.table, segment.end, segment.past)
        except ContextFull:
            self._drop(handle)
            self.cache.release(handle.table, held * BLOCK_SIZE)
            return "cache"
        return None

    def _segments(self, row: Row, parents: tuple[int, ...] | None) -> list[Segment]:
        handle, block = row.handle, row.block
        if block.is_chain:
            return [chain_segment(handle.table, handle.length, block, pad_single=self._exact)]
        if parents is None:
            return [masked_segment(handle.table, handle.length, block)]
        return fork_segments(handle.table, handle.length, block, parents, self.cache, pad_single=self._exact)

    def _run(self, batch: Batch, refused: Mapping[int, Refusal]) -> StepOutput:
        """Run a step, in parts where it is too wide, and not at all where all its rows were refused."""
        seconds, found = 0.0, dict[str, Array]()
        num_logits, num_hidden = batch.logits.offsets[-1], batch.hidden.offsets[-1]
        if self._too_wide(batch.num_tokens):
            for part in batch.parts(self.widest, self._padding):
                seconds += self._infer(part.inputs)
                scored, seen = (self._scored, part.logits, num_logits), (self._seen, part.hidden, num_hidden)
                for names, places, total in (scored, seen):
                    for name, rows in self._outputs(names, len(places)).items():
                        whole = found.setdefault(name, np.empty((total, *rows.shape[1:]), rows.dtype))
                        whole[places] = rows
        elif batch.num_tokens:
            seconds = self._infer(batch.inputs(self._padding))
            found = self._outputs(self._scored, num_logits) | self._outputs(self._seen, num_hidden)
        return self._result(batch, refused, found, seconds)

    def _result(
        self, batch: Batch, refused: Mapping[int, Refusal], found: Mapping[str, Array], seconds: float
    ) -> StepOutput:
        logits = found.get("logits")
        return StepOutput(
            np.empty((0, self.vocab_size), np.float32) if logits is None else logits,
            tuple(batch.logits.offsets),
            seconds,
            refused,
            {int(name.partition(".")[2]): found[name] for name in self._seen if name in found},
            tuple(batch.hidden.offsets),
            found.get(HEAD_INPUT),
        )

    def _too_wide(self, num_tokens: int) -> bool:
        return 0 < self.widest < num_tokens

    def _infer(self, inputs: Mapping[str, Array]) -> float:
        """Run the graph; return the seconds that it took."""
        return self._request(inputs)

    def _outputs(self, names: Sequence[str], num_rows: int) -> dict[str, Array]:
        """Return the first rows of these outputs, valid until the next step; nothing where there are none."""
        return {name: self._request.output(name).data[:num_rows, 0] for name in names if num_rows}


def _is_path(segments: Sequence[Segment], nodes: list[int]) -> bool:
    """Return whether these tokens begin a chain or a path of a tree."""
    return any([*segment.nodes[: len(nodes)]] == nodes for segment in segments)
