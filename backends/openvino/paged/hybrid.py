"""A paged model with recurrent states beside its key/value cache: linear attention, short convolutions.

A step that verifies writes a state a token, so that any of them can be kept; a prompt's step writes the one
at its end. Where a sequence has no state at its own length, since it went back to a token between two states
or there was no room for one, the tokens in between are computed once more before its next step.
`states.py` decides which states are kept; the paths of a tree begin with the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specport.backends.openvino.paged.batch import Batch
from specport.backends.openvino.paged.model import PagedModel, PagedSequence
from specport.backends.openvino.paged.segments import Segment, chain_segment
from specport.backends.openvino.paged.states import WASTE, History, Mark, StateCache
from specport.backends.openvino.request import Request

from specport.core.block import Block
from specport.core.ports import Row, StepOutput
from specport.errors import ContextFull

_MOST_STATES = 1024  # what a model with small states ends at: 64 texts with 16 states each
_SHARE = 0.5  # of the cache's memory, at most, for states
_RECENT = 32  # tokens that a draft may take back at once
_WIDEST = 64  # tokens; a wider chain is a prompt's, whatever its logits are for


@dataclass
class HybridSequence(PagedSequence):
    """Hold a sequence's committed tokens with their states, and the states that its last step wrote.

    written: token of the last step -> block of the state behind it.
    """

    history: History = field(default_factory=History)
    written: dict[int, int] = field(default_factory=dict)


class HybridModel(PagedModel):
    """Like `PagedModel`, for a graph with tables of states.

    cache_bytes: most memory of states and key/value cache together; None = no limit.
    goes_back:   keep a state behind each of the last tokens: a draft takes tokens back in every round.
    """

    can_mask = False  # a state has seen all tokens before it: each path of a tree is a chain of its own
    can_keep = False  # what linear attention knows is in states, which stand at few tokens of a text

    def __init__(
        self, request: Request, *, cache_bytes: int | None = None, goes_back: bool = False, **options: Any
    ) -> None:
        share = None if cache_bytes is None else int(_SHARE * cache_bytes)
        self.states = StateCache(request, _MOST_STATES, share, _RECENT if goes_back else 1)
        if cache_bytes is not None:
            cache_bytes -= self.states.bytes_for(self.states.max_blocks)
        super().__init__(request, cache_bytes=cache_bytes, **options)

    def widen(self, fewest: int) -> bool:
        return False  # the operators of states write no rows beyond those of the segments

    def room(self, handle: PagedSequence | None = None) -> int:
        held = handle is not None and self._of(handle).history.marks
        return super().room(handle) if held or self.states.has_room() else 0

    def fork_checked(self, handle: PagedSequence, length: int) -> PagedSequence:
        fork = self._of(super().fork_checked(handle, length))
        fork.history = self.states.fork(self._of(handle).history, length)
        return fork

    def close(self, handle: PagedSequence) -> None:
        super().close(handle)
        self.states.cut(self._of(handle).history, 0)

    def truncate_checked(self, handle: PagedSequence, length: int) -> None:
        super().truncate_checked(handle, length)
        self.states.cut(self._of(handle).history, length)

    def commit(self, handle: PagedSequence, nodes: Sequence[int]) -> None:
        kept, own = self._kept(handle, nodes), self._of(handle)
        own.history.tokens += [own.pending.tokens[node] for node in kept]
        written = [(i, own.written.pop(node)) for i, node in enumerate(kept, 1) if node in own.written]
        marks = [Mark(own.length + i, block) for i, block in written]
        super().commit(handle, kept)
        if marks:
            self.states.add(own.history, marks)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        seconds = self._catch_up([self._of(row.handle) for row in rows])
        output = super().step(rows)
        return replace(output, seconds=output.seconds + seconds)

    def _new(self) -> HybridSequence:
        return HybridSequence()

    def _start(self, handle: PagedSequence) -> int:
        return self._of(handle).history.known

    def _drop(self, handle: PagedSequence) -> None:
        super()._drop(handle)
        own = self._of(handle)
        self.states.give_back(own.written.values())
        own.written = {}

    def _segments(self, row: Row, parents: tuple[int, ...] | None) -> list[Segment]:
        handle = self._of(row.handle)
        if handle.history.known != handle.length:  # there was no room to compute its state
            raise ContextFull("there is no room for one more state")
        # A step that verifies writes a state behind each token, a prompt's the one at its end.
        each = not row.block.is_chain or (row.logits == "all" and len(row.block) <= _WIDEST)
        handle.written = self._blocks(row, each)  # `_drop` gives them back where what follows fails
        segments = super()._segments(row, parents)
        seen: set[int] = set()
        for segment in segments:
            # Paths share their first nodes: the state behind such a node is the first path's.
            blocks = [WASTE if node in seen else handle.written.get(node, WASTE) for node in segment.nodes]
            segment.writes(handle.history.state, blocks if each else blocks[-1:], WASTE)
            seen.update(segment.nodes)
        return segments

    def _blocks(self, row: Row, each: bool) -> dict[int, int]:
        """Return blocks for the states behind the tokens of a row: behind the first ones, or the last.

        each: behind as many as there is room for. Raises ContextFull where the last cannot be kept either.
        """
        if each:
            count = max(1, min(len(row.block), self.states.num_extra))
            return dict(enumerate(self.states.take(count)))
        blocks = self.states.take(1)
        if not blocks:
            raise ContextFull("there is no room for one more state")
        return {len(row.block) - 1: blocks[0]}

    def _catch_up(self, handles: Sequence[HybridSequence]) -> float:
        """Compute the states at the sequences' own lengths where there are none; return the seconds.

        A sequence for which there is no room is left as it is.
        """
        batch, marks = Batch(), list[tuple[History, Mark]]()
        try:
            for handle in handles:
                history = handle.history
                if history.known == handle.length or not (blocks := self.states.take(1)):
                    continue
                self._drop(handle)  # a step that nobody committed
                marks.append((history, Mark(handle.length, *blocks)))
                block = Block.chain(history.tokens[history.known :])
                segment = chain_segment(handle.table, history.known, block, pad_single=self._exact)
                segment.writes(history.state, blocks, WASTE)
                try:
                    self.cache.extend(handle.table, segment.end, history.known)
                except ContextFull:
                    self.states.give_back(blocks)
                    marks.pop()
                    continue
                batch.add(Row(handle, block, logits="none"), [segment])
            seconds = self._run(batch, {}).seconds
        except BaseException:
            self.states.give_back(mark.block for _, mark in marks)
            raise
        for history, mark in marks:
            self.states.add(history, [mark])
        return seconds

    @staticmethod
    def _of(handle: PagedSequence) -> HybridSequence:
        assert isinstance(handle, HybridSequence)
        return handle
