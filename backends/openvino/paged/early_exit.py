"""A paged model in three parts that exits early and drafts for itself: `EarlyExit` of the core.

Weights and cache are there once. `draft` runs front and head, and keeps what leaves the front; the step that
verifies the same tokens runs the front on the others only (LayerSkip's "KVQ cache", arXiv 2404.16710).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.graph.halves import STREAM_IN, STREAM_OUT
from specport.backends.openvino.graph.surgery import LOGITS_INDICES
from specport.backends.openvino.paged.batch import Batch, Padding
from specport.backends.openvino.paged.model import PagedModel, PagedSequence
from specport.backends.openvino.paged.segments import Segment, chain_segment
from specport.backends.openvino.request import Request

from specport.core.block import Block
from specport.core.ports import Refusal, Row, StepOutput
from specport.errors import ContextFull

Stream = NDArray[np.generic]  # [tokens, 1, width]
_NO_STREAM: Stream = np.zeros(0)


@dataclass
class ExitSequence(PagedSequence):
    """drafted: tokens behind the committed ones whose front is computed; stream: what left it, a row each."""

    drafted: list[int] = field(default_factory=list)
    stream: list[Stream] = field(default_factory=list)


class PagedExit:
    """The early exit of an `ExitModel`."""

    def __init__(self, model: ExitModel, layer: int) -> None:
        self._model, self.layer = model, layer

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        return self._model.draft(rows)


class ExitModel(PagedModel):
    """Like `PagedModel`, whose logits it gives, in three compiled parts (`graph/halves.py`).

    exit_layer:  layers in the front.
    cache_bytes: as in `PagedModel`; front and back together.
    """

    def __init__(
        self,
        front: ov.CompiledModel,
        back: ov.CompiledModel,
        head: ov.CompiledModel,
        *,
        exit_layer: int,
        max_context: int,
        exact: bool,
        cache_bytes: int | None = None,
    ) -> None:
        self._front, self._back = Request(front), Request(back)
        super().__init__(
            Request(head),
            max_context=max_context,
            exact=exact,
            cache_bytes=cache_bytes,
            cached=(self._front, self._back),
        )
        self._element = back.input(STREAM_IN).get_element_type()
        self.early_exit = PagedExit(self, exit_layer)

    def _new(self) -> ExitSequence:
        return ExitSequence()

    def _drop(self, handle: PagedSequence) -> None:
        super()._drop(handle)
        assert isinstance(handle, ExitSequence)
        handle.drafted, handle.stream = [], []

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        """Append each row's chain behind what was drafted, and score it (`EarlyExit.draft`)."""
        if any(not row.block.is_chain for row in rows):
            raise ValueError("early exit drafts chains only")
        self._parents(rows)  # refuses empty ones
        if len(rows) > 1 and self._too_wide(sum(max(2, len(row.block)) for row in rows)):
            return self._in_halves(rows)
        with self._all_or_nothing(rows):
            batch, refused = Batch(), dict[int, Refusal]()
            for i, row in enumerate(rows):
                handle = row.handle
                ahead = len(handle.drafted)
                if handle.length + ahead + len(row.block) > self.max_context:
                    refused[i] = "context"
                    batch.skip()
                    continue
                if not ahead:
                    self._drop(handle)  # a step that nobody committed
                try:
                    batch.add(row, [self._behind(handle, ahead, row.block)])
                except ContextFull:
                    refused[i] = "cache"
                    batch.skip()
            if not batch.num_tokens:
                return self._result(batch, refused, {}, 0.0)
            inputs = batch.inputs(self._padding)
            seconds = self._front(inputs)
            stream, start = self._front.output(STREAM_OUT), 0
            for row, segments in zip(rows, batch.segments, strict=True):
                for segment in segments:
                    row.handle.drafted += row.block.tokens
                    row.handle.stream.append(stream.data[start : start + len(row.block)].copy())
                    start += len(segment.tokens)
            seconds += self._head(inputs, stream)
            return self._result(batch, refused, self._logits(batch), seconds)

    @contextmanager
    def _all_or_nothing(self, rows: Sequence[Row]) -> Iterator[None]:
        """Also keep what was drafted before: a draft that fails is as if nobody had asked for it."""
        before = [_drafted(row.handle) for row in rows]
        try:
            with super()._all_or_nothing(rows):
                yield
        except BaseException:
            for row, drafts in zip(rows, before, strict=True):
                row.handle.drafted, row.handle.stream = drafts
            raise

    def _in_halves(self, rows: Sequence[Row]) -> StepOutput:
        half = len(rows) // 2
        with self._all_or_nothing(rows):
            first = self.draft(rows[:half])
            logits = first.logits.copy()
            second = self.draft(rows[half:])
        offsets = (*first.offsets, *(first.offsets[-1] + offset for offset in second.offsets[1:]))
        refused = {**first.refused, **{half + i: why for i, why in second.refused.items()}}
        return StepOutput(
            np.concatenate([logits, second.logits]), offsets, first.seconds + second.seconds, refused
        )

    def step(self, rows: Sequence[Row]) -> StepOutput:
        parents = self._parents(rows)
        with self._all_or_nothing(rows):
            before = [_drafted(row.handle) for row in rows]
            known = [_known(row.handle, row.block) for row in rows]
            batch, refused = self._laid_out(rows, parents)
            ahead = Batch()
            for i, row in enumerate(rows):
                if i in refused:
                    row.handle.drafted, row.handle.stream = before[i]
                    known[i] = _NO_STREAM
                    ahead.skip()
                elif len(known[i]) == len(row.block):
                    ahead.skip()
                elif rest := self._rest(row, len(known[i])):
                    ahead.add(*rest)
                else:
                    known[i] = _NO_STREAM
                    ahead.add(row, row.handle.segments)
            if not any(map(len, known)) or self._too_wide(batch.num_tokens):
                return self._run(batch, refused)
            inputs = batch.inputs(self._padding)
            seconds = self._front(ahead.inputs(Padding())) if ahead.num_tokens else 0.0
            joined = self._joined(batch, ahead, known)
            self._back.bind(STREAM_IN, ov.Tensor(joined, ov.Shape(joined.shape), self._element))
            seconds += self._back(inputs)
            seconds += self._head(inputs, self._back.output(STREAM_OUT))
            return self._result(batch, refused, self._logits(batch), seconds)

    def _rest(self, row: Row, known: int) -> tuple[Row, list[Segment]] | None:
        """Return the part of a row that the front has not computed.

        None where nothing is known of it, or where the cache has no room for the padding of a lone token.
        """
        if not known:
            return None
        block = Block.chain(row.block.tokens[known:])
        try:
            return Row(row.handle, block), [self._behind(row.handle, known, block)]
        except ContextFull:
            return None

    def _infer(self, inputs: Mapping[str, Stream]) -> float:
        seconds = self._front(inputs)
        self._back.bind(STREAM_IN, self._front.output(STREAM_OUT))
        seconds += self._back(inputs)
        return seconds + self._head(inputs, self._back.output(STREAM_OUT))

    def _behind(self, handle: ExitSequence, ahead: int, block: Block) -> Segment:
        """Return a chain behind `ahead` tokens whose front is computed. Raises ContextFull."""
        past = handle.length + ahead
        segment = chain_segment(handle.table, past, block, pad_single=self._exact)
        self.cache.extend(handle.table, segment.end, past)
        return segment

    def _joined(self, batch: Batch, ahead: Batch, known: Sequence[Stream]) -> Stream:
        """Return the stream into the back: of each row what is known and what the front just gave, padded."""
        found = self._front.output(STREAM_OUT).data if ahead.num_tokens else None
        parts: list[Stream] = []
        start = 0
        for segments, front, stream in zip(batch.segments, ahead.segments, known, strict=True):
            count = sum(len(segment.tokens) for segment in segments)
            if not count:
                continue
            given = sum(len(segment.tokens) for segment in front)
            own = [stream] if len(stream) else []
            if found is not None and given:
                own.append(found[start : start + given])
            start += given
            rows = np.concatenate(own)[:count]
            parts.append(rows)
            parts += [rows[-1:]] * (count - len(rows))
        return np.concatenate(parts)

    def _head(self, inputs: Mapping[str, Stream], stream: ov.Tensor) -> float:
        """Run the head where any logits are wanted."""
        if not inputs[LOGITS_INDICES].size:
            return 0.0
        self._request.bind(STREAM_IN, stream)
        return self._request({LOGITS_INDICES: inputs[LOGITS_INDICES]})

    def _logits(self, batch: Batch) -> dict[str, Stream]:
        return self._outputs(self._scored, batch.logits.offsets[-1])


def _drafted(handle: ExitSequence) -> tuple[list[int], list[Stream]]:
    """Return a copy of what the sequence has drafted."""
    return [*handle.drafted], [*handle.stream]


def _known(handle: ExitSequence, block: Block) -> Stream:
    """Return what the front gave for the beginning of this block, a chain that was drafted.

    Trees with branches are computed anew: their paths may be stepped in other blocks of the cache.
    """
    count = block.beginning(handle.drafted) if block.is_chain else 0
    return np.concatenate(handle.stream)[:count] if count else _NO_STREAM
