"""Run a target's own module for multi-token prediction (`Model.mtp`): a paged model, with states in rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.graph import mtp as graph
from specport.backends.openvino.graph import surgery
from specport.backends.openvino.graph.merge import PAIRS, merge_products
from specport.backends.openvino.paged.batch import Batch
from specport.backends.openvino.paged.model import PagedModel
from specport.backends.openvino.probe import computes_on
from specport.backends.openvino.request import Array, HeadRows, Request
from specport.quantize.convert.openvino_core import core

from specport.core.ports import HEAD_INPUT, Refusal, Row, StepOutput
from specport.models.kinds.mtp import read_join
from specport.models.precision import parse
from specport.runtime.caches import memory
from specport.runtime.devices.registry import LoadOptions


class PagedMtp(PagedModel):
    """A compiled graph of `graph/mtp.py` with its cache. Arguments as for `PagedModel`."""

    can_keep = False  # its cache depends on the target's states, not on the tokens alone

    def __init__(self, request: Request, **options: Any) -> None:
        super().__init__(request, hidden_layers=(HEAD_INPUT,), **options)
        shape = request.compiled.input(graph.STATES).get_partial_shape()
        self._width = int(shape[1].get_length())
        self._brought: Sequence[Array | None] = ()  # by the rows of the present step
        self._states: NDArray[np.float32] = np.zeros((0, self._width), np.float32)  # in the step's layout

    def step(self, rows: Sequence[Row]) -> StepOutput:
        self._brought = [row.states for row in rows]
        return super().step(rows)

    def _run(self, batch: Batch, refused: Mapping[int, Refusal]) -> StepOutput:
        self._states = np.zeros((batch.num_tokens, self._width), np.float32)
        place = 0
        for segments, states in zip(batch.segments, self._brought, strict=True):
            for segment in segments:
                if states is not None:
                    own = np.asarray(states)[np.asarray(segment.nodes)]
                    self._states[place : place + len(segment.nodes)] = own
                place += len(segment.tokens)  # the states of padding are 0
        return super()._run(batch, refused)

    def _infer(self, inputs: Mapping[str, Array]) -> float:
        return super()._infer({**inputs, graph.STATES: self._states})


def load_mtp(
    target: ov.Model,
    options: LoadOptions,
    max_context: int,
    compile_graph: Callable[[ov.Model], ov.CompiledModel],
) -> PagedMtp | None:
    """Return the module that is to draft for a stateful target, whose graph is read only; None where none is.

    max_context: of the target. compile_graph: for the target's device.
    Raises ModelError and DeviceError.
    """
    files, columns = options.mtp, options.mtp_tokens
    if files is None:
        return None
    join, decoder = read_join(files.folder), surgery.read_model(files.folder)
    if computes_on(options.profile) == "CPU":
        merge_products(decoder, PAIRS)
    rows = None if columns is None else surgery.head_rows(target)
    rounded = parse(files.precision).base.startswith("int")
    paged = graph.to_paged(decoder, target, join, columns, rounded=rounded, head_input=rows is not None)
    return PagedMtp(
        Request(compile_graph(paged)),
        max_context=max_context,
        exact=True,  # pads like an exact target: a change of shape costs more than a token
        head_rows=None if rows is None else HeadRows(core().compile_model(rows, "CPU")),
        cache_bytes=memory.default_share("draft"),
    )
