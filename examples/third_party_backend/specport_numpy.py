"""A specport backend in plain numpy: llama models out of a Hugging Face folder.

Every token is computed by itself, from its own ancestors in one fixed order. So logits depend on nothing
but the text before them: chains, trees and batches are exact without any further care, and slow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.core.ports import Capabilities, Row, StepOutput
from specport.core.tree import TokenTree
from specport.errors import ContextFull, ModelError
from specport.models.source import ModelFiles
from specport.runtime.profiles import Profile
from specport.runtime.registry import DeviceStatus, Loaded, LoadOptions, Weights

Floats = NDArray[np.float64]


@dataclass
class NumpySequence:
    """cache: [capacity, layers, 2, KV heads, head_dim]; pending: the same of each node of the last step."""

    cache: Floats
    length: int = 0
    tree: TokenTree = field(default_factory=TokenTree)
    pending: list[Floats] = field(default_factory=list)


class NumpyModel:
    """A llama. hidden_layers: layers whose output every step returns."""

    def __init__(self, folder: Path, max_context: int | None, hidden_layers: tuple[int, ...]) -> None:
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
        self._frequencies = config.get("rope_theta", 10000.0) ** -(np.arange(0, self._width, 2) / self._width)
        self.vocab_size = len(self._head)
        self.max_context = min(config["max_position_embeddings"], max_context or 1 << 30)
        self.capabilities = Capabilities(tree=True, batch=True, exact=True, hidden_states=hidden_layers)

    def open(self, capacity: int = 0) -> NumpySequence:
        return NumpySequence(np.zeros((min(capacity, self.max_context), *self._row)))

    def close(self, handle: NumpySequence) -> None:
        self.truncate(handle, 0)
        handle.cache = np.zeros((0, *self._row))

    def truncate(self, handle: NumpySequence, length: int) -> None:
        if not 0 <= length <= handle.length:
            raise ValueError(f"cannot truncate a sequence of {handle.length} tokens to {length}")
        handle.length, handle.tree, handle.pending = length, TokenTree(), []

    def commit(self, handle: NumpySequence, kept: Sequence[int]) -> None:
        path = handle.tree.checked_path(kept)
        end = handle.length + len(path)
        if end > len(handle.cache):
            more = np.zeros((min(self.max_context, 2 * end) - len(handle.cache), *self._row))
            handle.cache = np.concatenate([handle.cache, more])
        for i, node in enumerate(path):
            handle.cache[handle.length + i] = handle.pending[node]
        handle.length, handle.tree, handle.pending = end, TokenTree(), []

    def step(self, rows: Sequence[Row]) -> StepOutput:
        start = time.perf_counter()
        for row in rows:
            if (end := row.handle.length + max(row.tree.depths())) > self.max_context:
                raise ContextFull(f"{end} tokens do not fit the model's context of {self.max_context}")
        logits: list[Floats] = []
        hidden: list[dict[int, Floats]] = []
        offsets = [0]
        for row in rows:
            row.handle.tree, row.handle.pending = row.tree, []
            for node in range(len(row.tree)):
                stream, layers = self._token(row.handle, row.tree, node)
                if row.logits == "all" or node == len(row.tree) - 1:
                    logits.append(self._head @ self._norm(stream, "model.norm"))
                    hidden.append(layers)
            offsets.append(len(logits))
        chosen = {n: np.stack([h[n] for h in hidden]) for n in self.capabilities.hidden_states}
        return StepOutput(np.stack(logits), tuple(offsets), time.perf_counter() - start, chosen)

    def _token(self, handle: NumpySequence, tree: TokenTree, node: int) -> tuple[Floats, dict[int, Floats]]:
        """The residual stream behind the last layer, and behind every layer; keeps the node's K and V."""
        own = np.zeros(self._row)
        handle.pending.append(own)
        path = [handle.pending[i] for i in tree.path(node)]
        angles = (handle.length + len(path) - 1) * self._frequencies
        x, layers = self._embedding[tree.tokens[node]], {}
        for n in range(self._layers):
            name = f"model.layers.{n}"
            y = self._norm(x, f"{name}.input_layernorm")
            q, k, v = (self._w[f"{name}.self_attn.{p}_proj.weight"] @ y for p in "qkv")
            own[n, 0], own[n, 1] = _turned(k.reshape(self._kv, -1), angles), v.reshape(self._kv, -1)
            past = np.concatenate([handle.cache[: handle.length, n], np.stack([p[n] for p in path])])
            queries = _turned(q.reshape(self._heads, -1), angles).reshape(self._kv, -1, self._width)
            scores = np.einsum("ghd,tgd->ght", queries, past[:, 0]) / np.sqrt(self._width)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            mixed = np.einsum("ght,tgd->ghd", weights, past[:, 1]).ravel()
            x = x + self._w[f"{name}.self_attn.o_proj.weight"] @ mixed
            y = self._norm(x, f"{name}.post_attention_layernorm")
            gate, up = (self._w[f"{name}.mlp.{p}_proj.weight"] @ y for p in ("gate", "up"))
            x = x + self._w[f"{name}.mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
            layers[n] = x
        return x, layers

    @property
    def _row(self) -> tuple[int, ...]:
        return (self._layers, 2, self._kv, self._width)

    def _norm(self, x: Floats, name: str) -> Floats:
        return x / np.sqrt((x * x).mean() + self._eps) * self._w[f"{name}.weight"]


def _turned(x: Floats, angles: Floats) -> Floats:
    """Rotary embedding of [heads, head_dim], halves apart as Hugging Face stores them."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
    )


def read_safetensors(path: Path) -> dict[str, Floats]:
    """Name -> array. The file is 8 bytes of length, a JSON header, and the tensors' bytes."""
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
        return Loaded(NumpyModel(files.folder, options.max_context, options.hidden_layers))


backend = NumpyBackend()
