"""Run a compiled graph: bind tensors to its inputs, and call it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

Array = NDArray[np.generic]


class Request:
    """Run a compiled graph. Inputs that it lacks are ignored, so that several graphs can share a batch.

    Each input's memory is the request's own and is used again by later calls: callers' arrays are only read.
    """

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._names = {name for port in compiled.inputs for name in port.names}
        self._arrays: dict[str, Array] = {}

    def bind(self, port: Any, tensor: ov.Tensor) -> None:
        """Bind an input (a port or its name) to this tensor until `bind` or a call brings another."""
        self._request.set_tensor(port, tensor)
        for name in [port] if isinstance(port, str) else port.names:
            self._arrays.pop(name, None)  # no longer what the graph reads

    def __call__(self, inputs: Mapping[str, Array]) -> float:
        """Run the graph on these inputs and return the seconds inside the runtime's call."""
        for name, values in inputs.items():
            bound = self._arrays.get(name)
            if bound is not None and bound.shape == values.shape:
                bound[...] = values  # the tensor shares this memory; a new binding is far slower
            elif name in self._names:
                self._arrays[name] = own = np.array(values, order="C")
                self._request.set_tensor(name, ov.Tensor(own, shared_memory=True))
        start = time.perf_counter()
        self._request.infer(share_inputs=True, share_outputs=True)  # else it copies the logits
        return time.perf_counter() - start

    def output(self, name: str) -> ov.Tensor:
        """Return an output, valid until the next call."""
        return self._request.get_tensor(name)


class HeadRows:
    """Compute rows of the head that a model was cut from; compiled from `surgery.head_rows`."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()

    def __call__(self, tokens: Sequence[int]) -> Array:
        """Return [tokens, width] float32."""
        self._request.infer([np.asarray(tokens, dtype=np.int64)])
        rows: Array = self._request.get_output_tensor().data.copy()
        return rows
