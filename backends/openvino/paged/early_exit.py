"""A paged model in three parts that can exit early and draft for itself: `EarlyExitModel` of the core.

Weights and cache are there once. `draft` runs front and head, and keeps what leaves the front; the step that
verifies the same tokens runs the front on the others only (LayerSkip's "KVQ cache", arXiv 2404.16710).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.graph.halves import STREAM_IN, STREAM_OUT
from specport.backends.openvino.graph.surgery import LOGITS_INDICES
from specport.backends.openvino.paged.batch import Batch, Segment, chain_segment
from specport.backends.openvino.paged.model import PagedModel, PagedSequence
from specport.backends.openvino.request import Request

from specport.core.ports import Row, StepOutput
from specport.core.tree import TokenTree

Stream = NDArray[np.generic]  # [tokens, 1, width]


@dataclass
class ExitSequence(PagedSequence):
    """drafted: tokens behind the committed ones whose front is computed; stream: what left it, a row each."""

    drafted: list[int] = field(default_factory=list)
    stream: list[Stream] = field(default_factory=list)


class ExitModel(PagedModel):
    """Like `PagedModel`, whose logits it gives, in three compiled parts (`graph/halves.py`).

    exit_layer: layers in the front.
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
    ) -> None:
        self._front, self._back = Request(front), Request(back)
        super().__init__(
            Request(head), max_context=max_context, exact=exact, cached=(self._front, self._back)
        )
        self._element = back.input(STREAM_IN).get_element_type()
        self.capabilities = replace(self.capabilities, exit_layer=exit_layer)

    def open(self, capacity: int = 0) -> ExitSequence:
        sequence = ExitSequence()
        self.cache.extend(sequence.table, min(capacity, self.max_context))
        return sequence

    def _drop(self, handle: PagedSequence) -> None:
        super()._drop(handle)
        assert isinstance(handle, ExitSequence)
        handle.drafted, handle.stream = [], []

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        if len(rows) > 1 and self._too_wide(sum(max(2, len(row.tree)) for row in rows)):
            return self._in_halves(rows)
        for row in rows:
            if not row.tree.is_chain:
                raise ValueError("early exit drafts chains only")
            self._check_room(row, len(row.handle.drafted))
        with self._all_or_nothing(rows):
            batch = Batch()
            for row in rows:
                if not row.handle.drafted:
                    self._drop(row.handle)  # a step that nobody committed
                batch.add(row, [self._behind(row.handle, len(row.handle.drafted), row.tree)])
            inputs = batch.inputs(pad_head=self._exact)
            seconds = self._front(inputs)
            stream, start = self._front.output(STREAM_OUT), 0
            for row, (segment,) in zip(rows, batch.segments, strict=True):
                row.handle.drafted += row.tree.tokens
                row.handle.stream.append(stream.data[start : start + len(row.tree)].copy())
                start += len(segment.tokens)
            return self._scored(batch, inputs, stream, seconds)

    @contextmanager
    def _all_or_nothing(self, rows: Sequence[Row]) -> Iterator[None]:
        """Also keep what was drafted before: a draft that fails is as if nobody had asked for it."""
        before = [([*row.handle.drafted], [*row.handle.stream]) for row in rows]
        try:
            with super()._all_or_nothing(rows):
                yield
        except BaseException:
            for row, (drafted, stream) in zip(rows, before, strict=True):
                row.handle.drafted, row.handle.stream = drafted, stream
            raise

    def _in_halves(self, rows: Sequence[Row]) -> StepOutput:
        half = len(rows) // 2
        with self._all_or_nothing(rows):
            first = self.draft(rows[:half])
            logits = first.logits.copy()
            second = self.draft(rows[half:])
        offsets = (*first.offsets, *(first.offsets[-1] + offset for offset in second.offsets[1:]))
        return StepOutput(np.concatenate([logits, second.logits]), offsets, first.seconds + second.seconds)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            self._check_room(row)
        with self._all_or_nothing(rows):
            known = [_known(row.handle, row.tree) for row in rows]
            batch, ahead = Batch(), Batch()
            for row, stream in zip(rows, known, strict=True):
                self._lay_out(row)
                batch.add(row, row.handle.segments)
                if not len(stream):
                    ahead.add(row, row.handle.segments)
                elif len(stream) < len(row.tree):
                    rest = TokenTree.chain(row.tree.tokens[len(stream) :])
                    ahead.add(Row(row.handle, rest), [self._behind(row.handle, len(stream), rest)])
                else:
                    ahead.skip()
            if not any(map(len, known)) or self._too_wide(batch.num_tokens):
                return self._run(batch)
            inputs = batch.inputs(pad_head=self._exact)
            seconds = self._front(ahead.inputs(pad_head=False)) if ahead.num_tokens else 0.0
            joined = self._joined(batch, ahead, known)
            self._back.bind(STREAM_IN, ov.Tensor(joined, ov.Shape(joined.shape), self._element))
            seconds += self._back(inputs)
            return self._scored(batch, inputs, self._back.output(STREAM_OUT), seconds)

    def _infer(self, inputs: Mapping[str, Stream]) -> float:
        seconds = self._front(inputs)
        self._back.bind(STREAM_IN, self._front.output(STREAM_OUT))
        seconds += self._back(inputs)
        return seconds + self._head(inputs, self._back.output(STREAM_OUT))

    def _behind(self, handle: ExitSequence, ahead: int, tree: TokenTree) -> Segment:
        """A chain behind `ahead` tokens whose front is computed."""
        past = handle.length + ahead
        segment = chain_segment(handle.table, past, tree, pad_single=self._exact)
        self.cache.extend(handle.table, past + len(segment.tokens))
        return segment

    def _joined(self, batch: Batch, ahead: Batch, known: Sequence[Stream]) -> Stream:
        """The stream into the back: of each row what is known and what the front just gave, padded."""
        found = self._front.output(STREAM_OUT).data if ahead.num_tokens else None
        parts: list[Stream] = []
        start = 0
        for segments, front, stream in zip(batch.segments, ahead.segments, known, strict=True):
            count = sum(len(segment.tokens) for segment in segments)
            given = sum(len(segment.tokens) for segment in front)
            own = [stream] if len(stream) else []
            if found is not None and given:
                own.append(found[start : start + given])
            start += given
            rows = np.concatenate(own)[:count]
            parts.append(rows)
            parts += [rows[-1:]] * (count - len(rows))
        return np.concatenate(parts)

    def _scored(
        self, batch: Batch, inputs: Mapping[str, Stream], stream: ov.Tensor, seconds: float
    ) -> StepOutput:
        seconds += self._head(inputs, stream)
        return StepOutput(self._outputs(batch.offsets[-1])["logits"], tuple(batch.offsets), seconds)

    def _head(self, inputs: Mapping[str, Stream], stream: ov.Tensor) -> float:
        self._request.bind(STREAM_IN, stream)
        return self._request({LOGITS_INDICES: inputs[LOGITS_INDICES]})


def _known(handle: ExitSequence, tree: TokenTree) -> Stream:
    """What the front gave for the beginning of this tree, a chain that was drafted.

    Trees with branches are computed anew: their paths may be stepped in other blocks of the cache.
    """
    count = tree.beginning(handle.drafted) if tree.is_chain else 0
    stream: Stream = np.concatenate(handle.stream)[:count] if count else np.zeros(0)
    return stream
