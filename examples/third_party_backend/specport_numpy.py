"""A specport backend in plain numpy: llama models from a Hugging Face folder.

Each token is computed by itself, from the tokens that it sees in a fixed order. So logits depend on nothing
but those: chains, trees and batches are exact without any further care, and slow.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.core.copied_blocks import CopiedBlocks
from specport.core.ports import (
    Block,
    CachedSequence,
    Capabilities,
    CheckedModel,
    Refusal,
    Row,
    StepOutput,
    Wanted,
)
from specport.errors import ContextFull, ModelError
from specport.models.source import ModelFiles
from specport.runtime.devices.profiles import Profile
from specport.runtime.devices.registry import DeviceStatus, Loaded, LoadOptions, Weights

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Turns = NDArray[np.complex128]  # exp(i angle) of each pair of a head's values, [head_dim / 2]


@dataclass
class NumpySequence(CachedSequence):
    """One sequence in the cache.

    cache: [capacity, layers, 2, KV heads, head_dim] keys and values of the committed tokens.
    new:   [tokens, layers, 2, KV heads, head_dim] those of the last step's tokens, `pending`.
    """

    cache: Floats
    new: Floats = field(default_factory=lambda: np.zeros(0))


class NumpyModel(CheckedModel[NumpySequence]):
    """A llama.

    hidden_layers: layers whose output steps can return.
    cache_bytes:   bytes that all sequences may take together; None = no limit.
    """

    def __init__(
        self,
        folder: Path,
        max_context: int | None = None,
        hidden_layers: tuple[int, ...] = (),
        cache_bytes: int | None = None,
    ) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["model_type"] != "llama":
            raise ModelError(f"the numpy backend runs llama models, not {config['model_type']}")
        self._w: dict[str, Floats] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._w |= read_safetensors(path)
        self._embedding = self._w["model.embed_tokens.weight"]
        self._head = self._w.get("lm_head.weight", self._embedding)
        self._layers, self._eps = config["num_hidden_layers"], config["rms_norm_eps"]
        self._heads, self._kv = config["num_attention_heads"], config["num_key_value_heads"]
        self._width = config.get("head_dim") or config["hidden_size"] // self._heads
        base = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)  # transformers 5, or 4
        self._frequencies = base ** -(np.arange(0, self._width, 2) / self._width)
        self._row = (self._layers, 2, self._kv, self._width)
        self._most = sys.maxsize if cache_bytes is None else cache_bytes // (8 * math.prod(self._row))
        self._open: list[NumpySequence] = []
        self.vocab_size = len(self._head)
        self.max_context = min(config["max_position_embeddings"], max_context or 1 << 30)
        self.prefix_blocks = CopiedBlocks(self, 8 * math.prod(self._row), most_bytes=1 << 28)
        self.capabilities = Capabilities(
            visibility="any", batch=True, exact=True, gather=True, hidden_layers=hidden_layers
        )

    def room(self, handle: NumpySequence | None = None) -> int:
        length, held = (handle.length, len(handle.cache)) if handle is not None else (0, 0)
        free = self._most - sum(len(other.cache) for other in self._open)
        return max(0, min(self.max_context, held + free) - length)

    def open_checked(self, capacity: int) -> NumpySequence:
        if capacity > (room := self.room()):
            raise ContextFull(f"no room for a sequence of {capacity} tokens: {room} are left")
        self._open.append(NumpySequence(np.zeros((capacity, *self._row))))
        return self._open[-1]

    def fork_checked(self, handle: NumpySequence, length: int) -> NumpySequence:
        new = self.open(length)
        new.cache[:] = handle.cache[:length]
        new.settle(length)
        return new

    def read_rows(self, handle: NumpySequence, start: int, stop: int) -> Bytes:
        return handle.cache[start:stop].reshape(-1).view(np.uint8).copy()

    def write_rows(self, handle: NumpySequence, content: Bytes, num_tokens: int) -> None:
        end = handle.length + num_tokens
        handle.cache[handle.length : end] = content.view(np.float64).reshape(num_tokens, *self._row)
        handle.settle(end)

    def close(self, handle: NumpySequence) -> None:
        self._open = [other for other in self._open if other is not handle]
        handle.cache = np.zeros((0, *self._row))
        handle.settle(0)

    def commit(self, handle: NumpySequence, nodes: Sequence[int]) -> None:
        kept = handle.pending.checked_nodes(nodes)
        end = handle.length + len(kept)
        handle.cache[handle.length : end] = handle.new[kept]
        handle.settle(end)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        start = time.perf_counter()
        refused: dict[int, Refusal] = {}
        logits: list[Floats] = []
        hidden: dict[int, list[Floats]] = {layer: [] for layer in self.capabilities.hidden_layers}
        offsets, hidden_offsets = [0], [0]
        for i, row in enumerate(rows):
            if why := self._refusal(row.handle, row.block):
                refused[i] = why
            else:
                states = self._run(row.handle, row.block)
                logits += [self._head @ self._norm(x, "model.norm") for x in states[-1][_chosen(row.logits)]]
                for layer, found in hidden.items():
                    found += [*states[layer][_chosen(row.hidden)]]
            offsets.append(len(logits))
            hidden_offsets.append(max(map(len, hidden.values()), default=0))
        return StepOutput(
            np.array(logits).reshape(-1, self.vocab_size),
            tuple(offsets),
            time.perf_counter() - start,
            refused,
            {layer: np.stack(found) for layer, found in hidden.items() if found},
            tuple(hidden_offsets),
        )

    def _refusal(self, handle: NumpySequence, block: Block) -> Refusal | None:
        """Make room for a block; return why there is none."""
        if handle.length + block.reach > self.max_context:
            return "context"
        held, rows = len(handle.cache), handle.length + len(block)
        most = self._most - sum(len(other.cache) for other in self._open if other is not handle)
        if rows > most:
            return "cache"
        if rows > held:
            more = min(most, -(-rows // 64) * 64) - held
            handle.cache = np.concatenate([handle.cache, np.zeros((more, *self._row))])
        return None

    def _run(self, handle: NumpySequence, block: Block) -> Floats:
        """Return the states [layers, tokens, width] behind every layer; keep the tokens' keys and values."""
        n = len(block)
        handle.pending, handle.new = block, np.zeros((n, *self._row))
        seen = np.tri(n, dtype=np.bool_) if block.visible is None else block.visible
        turns = np.exp(1j * np.outer(handle.length + np.array(block.positions), self._frequencies))
        x, states = self._embedding[list(block.tokens)], []
        for layer in range(self._layers):
            own = handle.new[:, layer]
            queries = [self._read(layer, x[i], turns[i], own[i]) for i in range(n)]
            past = handle.cache[: handle.length, layer]
            x = np.stack(
                [self._mixed(layer, x[i], queries[i], np.concatenate([past, own[seen[i]]])) for i in range(n)]
            )
            states.append(x)
        return np.stack(states)

    def _read(self, layer: int, x: Floats, turns: Turns, own: Floats) -> Floats:
        """Return a token's queries [KV heads, group, head_dim]; write its keys and values to `own`."""
        y = self._norm(x, f"model.layers.{layer}.input_layernorm")
        q, k, v = (self._w[f"model.layers.{layer}.self_attn.{p}_proj.weight"] @ y for p in "qkv")
        own[0], own[1] = _turned(k.reshape(self._kv, -1), turns), v.reshape(self._kv, -1)
        return _turned(q.reshape(self._heads, -1), turns).reshape(self._kv, -1, self._width)

    def _mixed(self, layer: int, x: Floats, queries: Floats, past: Floats) -> Floats:
        """Return a token's state behind a layer, which attends to `past` [tokens, 2, KV heads, head_dim]."""
        name = f"model.layers.{layer}"
        scores = np.einsum("ghd,tgd->ght", queries, past[:, 0]) / np.sqrt(self._width)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("ght,tgd->ghd", weights, past[:, 1]).ravel()
        x = x + self._w[f"{name}.self_attn.o_proj.weight"] @ mixed
        y = self._norm(x, f"{name}.post_attention_layernorm")
        gate, up = (self._w[f"{name}.mlp.{p}_proj.weight"] @ y for p in ("gate", "up"))
        return x + self._w[f"{name}.mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)

    def _norm(self, x: Floats, name: str) -> Floats:
        return x / np.sqrt(x @ x / len(x) + self._eps) * self._w[f"{name}.weight"]


def _chosen(wanted: Wanted) -> slice:
    """Return which tokens of a row something is wanted of."""
    return {"all": slice(None), "last": slice(-1, None), "none": slice(0)}[wanted]


def _turned(x: Floats, turns: Turns) -> Floats:
    """Return the rotary embedding of [heads, head_dim], halves apart as Hugging Face stores them."""
    half = len(turns)
    turned = (x[:, :half] + 1j * x[:, half:]) * turns
    return np.concatenate([turned.real, turned.imag], -1)


def read_safetensors(path: Path) -> dict[str, Floats]:
    """Return name -> array. The file is 8 bytes of length, a JSON header, and the tensors' bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found: dict[str, Floats] = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            kind: Any = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry["dtype"]]
            values = np.frombuffer(data[begin:end], kind)
            if entry["dtype"] == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            found[name] = values.reshape(entry["shape"]).astype(np.float64)
    return found


class NumpyBackend:
    """The object behind the entry point."""

    name = "numpy"
    weights: Weights = "huggingface"

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        facts = {"runtime": f"numpy {np.__version__}"}
        return [DeviceStatus(p.name, self.name, p.device, True, facts=facts) for p in profiles]

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        return Loaded(
            NumpyModel(
                files.folder,
                options.max_context,
                options.hidden_layers,
                options.cache_bytes,
            )
        )


backend = NumpyBackend()
