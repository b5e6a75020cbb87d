"""Run a recurrent draft head on its target's hidden states: the `HiddenHead` port on OpenVINO.

The head runs on the CPU, wherever its target runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.graph import hidden_head as graph
from specport.backends.openvino.graph.surgery import first_line
from specport.backends.openvino.request import Array, Request
from specport.quantize.convert.openvino_core import core

from specport.core.ports import HeadChains
from specport.errors import DeviceError
from specport.models.kinds.recurrent import read_weights
from specport.runtime.devices.registry import LoadOptions

# Activations are quantised like those of a draft model (hw_profiles/xeon.toml).
_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64,
}


class RecurrentHead:
    """Hold the compiled graphs of a head. Arrays are on the host; steps of any number of rows.

    begin, step: compiled graphs of `graph/hidden_head.py`.
    """

    together = 1  # a call costs little beside the step

    def __init__(
        self,
        layers: tuple[int, ...],
        columns: tuple[int, ...] | None,
        begin: ov.CompiledModel,
        step: ov.CompiledModel,
    ) -> None:
        self.layers, self.columns = layers, columns
        self._begin, self._step = Request(begin), Request(step)

    def begin(self, hidden: Mapping[int, Array]) -> NDArray[np.float32]:
        self._begin({f"hidden.{n}": np.asarray(hidden[n], dtype=np.float32) for n in self.layers})
        states: NDArray[np.float32] = self._output(self._begin, graph.STATES).copy()
        return states

    def step(self, states: Array, tokens: Sequence[int]) -> tuple[Array, NDArray[np.float32]]:
        self._run(states, tokens)
        return self._output(self._step, graph.LOGITS), self._output(self._step, graph.NEW_STATES).copy()

    def draft(self, states: Array, tokens: Sequence[int], depth: int) -> HeadChains:
        found = np.empty((len(tokens), depth), dtype=np.int64)
        confidences = np.empty(found.shape, dtype=np.float32)
        for k in range(depth):
            self._run(states, tokens if k == 0 else found[:, k - 1])
            found[:, k] = self._output(self._step, graph.NEXT)
            confidences[:, k] = self._output(self._step, graph.CONFIDENCES)
            states = self._output(self._step, graph.NEW_STATES).copy()
        return HeadChains(found, confidences, states)

    def _run(self, states: Array, tokens: Sequence[int] | Array) -> None:
        ids = np.asarray(tokens, dtype=np.int64)
        self._step({graph.STATES: np.asarray(states, dtype=np.float32), graph.TOKENS: ids})

    @staticmethod
    def _output(request: Request, name: str) -> Any:
        return request.output(name).data


def load_head(target: ov.Model, options: LoadOptions) -> RecurrentHead | None:
    """Return the head that is to draft for a stateful target, whose graph is read only; None where none is.

    Raises ModelError, and DeviceError where OpenVINO cannot compile it.
    """
    files = options.hidden_head
    if files is None or files.bundle is None or files.bundle.recurrent is None:
        return None
    shape, columns = files.bundle.recurrent, files.bundle.head_tokens
    weights = read_weights(files.folder, shape)
    graphs = graph.begin_graph(shape, weights), graph.step_graph(shape, weights, target, columns)
    settings: dict[str, Any] = dict(_SETTINGS)
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    try:
        begin, step = (core().compile_model(model, "CPU", settings) for model in graphs)
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO cannot load the draft head {files.folder}: {first_line(error)}"
        ) from error
    return RecurrentHead(shape.layers, columns, begin, step)
