"""One compiled width of a static model, and the cache that is bound to it. Knows no sequences.

A cache is a list of arrays [tensors, 1, heads, capacity, size], one for each shape that the tensors of
the model's layers have, so that keeping a step's new rows of all layers is one numpy assignment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.paged.pool import aligned
from specport.backends.openvino.static.graph import LOGITS_ROWS, PAST, PRESENT

Array = NDArray[np.generic]
Cache = list[Array]


@dataclass(frozen=True)
class Output:
    """Result of a run, valid until the next one.

    logits: [rows, vocab] of the last tokens, as many as the width gives.
    hidden: layer -> [tokens, size] of all tokens.
    seconds: inside the runtime's call.
    """

    logits: Array
    hidden: dict[int, Array]
    seconds: float


class StaticRunner:
    """Runs up to `width` new tokens of one sequence; fewer are padded.

    masks: [capacity, capacity] for each kind of attention (`graph.Static.masks`).
    """

    def __init__(
        self, compiled: ov.CompiledModel, masks: Sequence[Array], hidden_layers: Sequence[int] = ()
    ) -> None:
        self._request = compiled.create_infer_request()
        self._masks, self._hidden_layers = masks, hidden_layers
        self.width = int(compiled.input("input_ids").get_shape()[1])
        self.num_rows, self.vocab_size = (int(n) for n in compiled.output("logits").get_shape()[1:])
        self._groups: dict[tuple[int, ...], list[ov.Output]] = {}
        self._inputs: dict[str, Array] = {}
        self._bound: Cache = []
        for port in compiled.inputs:
            if port.any_name.startswith(PAST):
                self._groups.setdefault(tuple(port.get_shape()), []).append(port)
            else:
                array = np.zeros(tuple(port.get_shape()), port.get_element_type().to_dtype())
                self._inputs[port.any_name] = array
                self._request.set_tensor(port, ov.Tensor(array, shared_memory=True))
        self._new = self._arrays(self.width)
        for array, ports in zip(self._new, self._groups.values(), strict=True):
            for part, port in zip(array, ports, strict=True):
                name = port.any_name.replace(PAST, PRESENT)
                self._request.set_tensor(name, ov.Tensor(part, shared_memory=True))

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's row in all layers."""
        return sum(array.nbytes // self.width for array in self._new)

    @property
    def cache_bytes(self) -> int:
        """Bytes of one cache."""
        return self.token_bytes * int(self._masks[0].shape[0])

    def new_cache(self) -> Cache:
        """Return a zeroed cache: what lies behind the text is masked, but it must be finite."""
        return self._arrays(int(self._masks[0].shape[0]))

    def _arrays(self, num_rows: int) -> Cache:
        found = []
        for (one, heads, _, size), ports in self._groups.items():
            dtype = ports[0].get_element_type().to_dtype()
            found.append(aligned((len(ports), one, heads, num_rows, size), dtype))
        return found

    def run(self, cache: Cache, length: int, tokens: Sequence[int]) -> Output:
        """Read tokens behind `length` rows of the cache, and add theirs to it."""
        if cache is not self._bound:
            for array, ports in zip(cache, self._groups.values(), strict=True):
                for part, port in zip(array, ports, strict=True):
                    self._request.set_tensor(port, ov.Tensor(part, shared_memory=True))
            self._bound = cache
        count, inputs = len(tokens), self._inputs
        # Padding stands in the last rows, which no text reaches, so that nothing that counts sees it.
        capacity = int(self._masks[0].shape[0])
        positions = np.arange(capacity - self.width, capacity)
        positions[:count] = np.arange(length, length + count)
        inputs["input_ids"][0] = [*tokens, *[0] * (self.width - count)]
        inputs["position_ids"][0] = positions
        inputs[LOGITS_ROWS][:] = np.arange(self.num_rows) + max(0, count - self.num_rows)
        for i, mask in enumerate(self._masks):
            np.take(mask, positions, axis=0, out=inputs[f"mask.{i}"][0, 0])
        start = time.perf_counter()
        self._request.infer(share_inputs=True, share_outputs=True)
        seconds = time.perf_counter() - start
        for array, new in zip(cache, self._new, strict=True):
            array[:, :, :, length : length + count] = new[:, :, :, :count]
        rows = min(count, self.num_rows)
        hidden = {
            layer: self._request.get_tensor(f"hidden.{layer}").data[0, :count]
            for layer in self._hidden_layers
        }
        return Output(self._request.get_tensor("logits").data[0, :rows], hidden, seconds)
