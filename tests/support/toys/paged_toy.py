"""A stand-in for the graph of a hybrid model: it writes down which tokens it has seen, and computes nothing.

Its attention remembers each token in the blocks of the key/value cache, its recurrent layer a checksum of all
tokens so far, and both read and write their blocks as OpenVINO's operators do (2026.4). The logits of a token
are the two checksums and its position: equal where a sequence's memory is what it should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
from specport.backends.openvino.graph.surgery import LOGITS_INDICES
from specport.backends.openvino.paged.cache import BLOCK_SIZE

VOCAB = 64


class _Port:
    def __init__(self, name: str, *shape: int) -> None:
        self.names, self._shape = {name}, shape

    def get_partial_shape(self) -> Any:
        return [SimpleNamespace(get_length=lambda n=n: n) for n in self._shape]

    def get_element_type(self) -> Any:
        return ov.Type.f32


class ToyRequest:
    """Stand in for `request.Request`. num_calls: steps that were run; num_tokens: in them, with padding."""

    def __init__(self) -> None:
        ports = [
            _Port("key_cache.0", 0, 1, BLOCK_SIZE, 1),
            _Port("gated_delta_state_table.0", 0, 1),
            _Port("conv_state_table.0", 0, 1),
        ]
        logits = _Port("logits", 0, 1, VOCAB)
        self.compiled = SimpleNamespace(inputs=ports, output=lambda name: logits)
        self._tables: dict[str, Any] = {}
        self._logits = np.zeros((0, 1, VOCAB), np.float32)
        self.num_calls = self.num_tokens = 0

    def bind(self, port: _Port, tensor: Any) -> None:
        self._tables[next(iter(port.names)).partition(".")[0]] = tensor.data

    def output(self, name: str) -> Any:
        return SimpleNamespace(data=self._logits)

    def __call__(self, inputs: Mapping[str, Any]) -> float:
        self.num_calls += 1
        self.num_tokens += len(inputs["input_ids"])
        tokens, positions = inputs["input_ids"].tolist(), inputs["position_ids"].tolist()
        rows: list[list[int]] = []
        begins = inputs["subsequence_begins"].tolist()
        for i, past in enumerate(inputs["past_lens"].tolist()):
            own = slice(begins[i], begins[i + 1])
            table = _part(inputs, "block_indices", i)
            states = _part(inputs, "la.block_indices", i)
            interval = int(inputs["la.cache_interval"][i])
            assert inputs["la.past_lens"][i] % interval == 0 and len(states) > 1
            rows += self._sequence(past, tokens[own], positions[own], table, states, interval)
        wanted = [rows[i] for i in inputs[LOGITS_INDICES]]
        self._logits = np.zeros((len(wanted), 1, VOCAB), np.float32)
        for row, values in zip(self._logits, wanted, strict=True):
            row[0, : len(values)] = values
        return 0.001

    def _sequence(
        self,
        past: int,
        tokens: list[int],
        positions: list[int],
        table: list[int],
        states: list[int],
        interval: int,
    ) -> list[list[int]]:
        cache = self._tables["key_cache"]
        gated, conv = (self._tables[name] for name in ("gated_delta_state_table", "conv_state_table"))
        state = (int(gated[states[0], 0]), int(conv[states[0], 0]))
        rows = []
        for n, token in enumerate(tokens, 1):
            at = past + n - 1
            cache[table[at // BLOCK_SIZE], 0, at % BLOCK_SIZE, 0] = token + 1
            state = tuple((31 * part + token + 1) % 65521 for part in state)  # type: ignore[assignment]
            if n % interval == 0 or n == len(tokens):
                slot = 1 + (n - 1) // interval
                if slot < len(states):
                    gated[states[slot], 0], conv[states[slot], 0] = state
            seen = [int(cache[table[i // BLOCK_SIZE], 0, i % BLOCK_SIZE, 0]) for i in range(at + 1)]
            rows.append([*state, _checksum(seen), positions[n - 1]])
        return rows


def _checksum(values: list[int]) -> int:
    total = 1
    for value in values:
        total = (17 * total + value) % 65521
    return total


def _part(inputs: Mapping[str, Any], name: str, i: int) -> list[int]:
    first, end = inputs[f"{name}_begins"][i : i + 2]
    found: list[int] = inputs[name][first:end].tolist()
    return found
