"""A paged model in runs of layers and a head, and its slim verifier, which leaves out some of the runs.

Each run is compiled once, and both models have a request of their own on it: the runtime's packed weights are
in memory once. `graph/halves.py` cuts the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openvino as ov
from specport.backends.openvino.graph.halves import STREAM_IN, STREAM_OUT
from specport.backends.openvino.graph.surgery import LOGITS_INDICES
from specport.backends.openvino.paged.model import PagedModel
from specport.backends.openvino.request import Array, Request


class RunsModel(PagedModel):
    """Like `PagedModel`, in several compiled runs of layers. options: as for `PagedModel`."""

    def __init__(self, runs: Sequence[ov.CompiledModel], head: ov.CompiledModel, **options: Any) -> None:
        self._runs = [Request(run) for run in runs]
        super().__init__(Request(head), cached=self._runs, **options)

    def _infer(self, inputs: Mapping[str, Array]) -> float:
        seconds, before = 0.0, None
        for run in self._runs:
            if before is not None:
                run.bind(STREAM_IN, before.output(STREAM_OUT))
            seconds += run(inputs)
            before = run
        if not inputs[LOGITS_INDICES].size or before is None:
            return seconds
        self._request.bind(STREAM_IN, before.output(STREAM_OUT))
        return seconds + self._request({LOGITS_INDICES: inputs[LOGITS_INDICES]})


@dataclass(frozen=True)
class CompiledRuns:
    """Hold the compiled parts of a model. kept: whether the slim verifier has each run."""

    runs: tuple[ov.CompiledModel, ...]
    head: ov.CompiledModel
    kept: tuple[bool, ...]

    def model(self, cache_bytes: int, slim_bytes: int, **options: Any) -> RunsModel:
        """Return the whole model, with its slim verifier. options: of both, as for `PagedModel`."""
        whole = RunsModel(self.runs, self.head, cache_bytes=cache_bytes, **options)
        runs = [run for run, kept in zip(self.runs, self.kept, strict=True) if kept]
        whole.slim = RunsModel(runs, self.head, cache_bytes=slim_bytes, **options)
        return whole
