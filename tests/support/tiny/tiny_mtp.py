"""Random weights for multi-token prediction, in the spellings of several families, and what they compute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from support.tiny import tiny_models

# Name of the form -> stem, prefix of the layer, names of join, token norm, state norm, last norm; whether the
# join reads the state first. {n} is the number of the target's layers.
FORMS: dict[str, tuple[Any, ...]] = {
    "qwen": ("mtp.", "mtp.layers.0.", "fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm", False),
    "deepseek": ("model.layers.{n}.",) * 2 + ("eh_proj", "enorm", "hnorm", "shared_head.norm", False),
    "mimo": ("model.mtp_layers.0.",) * 2
    + ("input_proj", "token_layernorm", "hidden_layernorm", "final_layernorm", True),
}
_SMALL = 0.003  # factor on what layers add, where a module often says what its target will say


@dataclass(frozen=True)
class Tiny:
    """Hold a module's weights as the formulas name them, all float64. layer: by the names of transformers.

    join: [width, 2 * width], for the token's embedding and then the state.
    """

    join: np.ndarray
    token: np.ndarray
    state: np.ndarray
    norm: np.ndarray
    layer: Mapping[str, np.ndarray]


def save(
    folder: Path, form: str, kind: str = "qwen3", *, agrees: bool = False, num_layers: int = 2, **changes: Any
) -> Tiny:
    """Write a tiny target of `kind` with a module of this form; return the module.

    agrees: make it a module that often says what the target will say.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if agrees:  # a head of its own, or a text would repeat one token
        changes = {"tie_word_embeddings": False, **changes}
    target = tiny_models.hf_model(kind, num_layers, **changes)
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if agrees and name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(_SMALL)
    target.save_pretrained(folder)
    tiny_models.save_tokenizer(folder)
    stored = load_file(folder / "model.safetensors")
    module = random_module(folder, stored, agrees=agrees)
    stored |= spelled(module, form, num_layers, offset=kind.startswith("qwen3_5"))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return module


def random_module(folder: Path, stored: Mapping[str, Any], *, agrees: bool, seed: int = 3) -> Tiny:
    """Return a module whose layer is like the last one of a model."""
    config = json.loads((folder / "config.json").read_text())
    width, last = config["hidden_size"], f"layers.{config['num_hidden_layers'] - 1}."
    rng = np.random.default_rng(seed)
    layer = {}
    for name, tensor in stored.items():
        if last in name:
            values = rng.normal(size=tuple(tensor.shape)) / np.sqrt(max(tensor.shape[-1], 1))
            small = _SMALL if agrees and name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            vector = rng.uniform(0.5, 1.5, tuple(tensor.shape)) if "norm" in name else small * values
            layer[name.partition(last)[2]] = vector
    join = rng.normal(size=(width, 2 * width)) / np.sqrt(2 * width)
    if agrees:
        join = np.concatenate([np.eye(width), _SMALL * join[:, width:]], axis=1)
    token, state, norm = rng.uniform(0.5, 1.5, (3, width))
    if agrees:
        token, norm = np.ones(width), np.asarray(_last_norm(stored), dtype=np.float64)
    return Tiny(join, token, state, norm, layer)


def _last_norm(stored: Mapping[str, Any]) -> Any:
    return next(tensor.numpy() for name, tensor in stored.items() if name.endswith("model.norm.weight"))


def spelled(module: Tiny, form: str, num_layers: int, *, offset: bool = False) -> dict[str, Any]:
    """Return a module's tensors by the names of a form. offset: norms are stored less 1."""
    import torch

    stem, prefix, join, token, state, norm, state_first = FORMS[form]
    stem, prefix = stem.format(n=num_layers), prefix.format(n=num_layers)
    width = len(module.token)
    weight = module.join
    if state_first:
        weight = np.concatenate([weight[:, width:], weight[:, :width]], axis=1)
    named = {join: weight, token: module.token - offset, state: module.state - offset}
    named[norm] = module.norm - offset
    found = {f"{stem}{name}.weight": values for name, values in named.items()}
    for name, values in module.layer.items():
        found[prefix + name] = values - (offset and "norm" in name)
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in found.items()}


class Reference:
    """Compute a module by its formulas in float64, with all text at once. Knows layers of Qwen's kinds.

    table, head: [vocab, width] of the target. config: as in its config.json.
    """

    def __init__(self, module: Tiny, table: np.ndarray, head: np.ndarray, config: Mapping[str, Any]) -> None:
        self.module, self.config = module, config
        self.table, self.head = table.astype(np.float64), head.astype(np.float64)

    def __call__(self, states: np.ndarray, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return states [n, width] and logits [n, vocab] of entries: the target's states, and next tokens."""
        m = self.module
        token = m.token * self._rms(self.table[[*tokens]])
        state = m.state * self._rms(states.astype(np.float64))
        x = np.concatenate([token, state], axis=1) @ m.join.T
        x = x + self._attention(self._rms(x) * m.layer["input_layernorm.weight"])
        y = self._rms(x) * m.layer["post_attention_layernorm.weight"]
        gate, up = (y @ m.layer[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ m.layer["mlp.down_proj.weight"].T
        found = self._rms(x) * m.norm
        return found, found @ self.head.T

    def chain(self, states: np.ndarray, tokens: Sequence[int], drafted: Sequence[int]) -> np.ndarray:
        """Return the logits [1 + drafted, vocab] behind a text and behind each drafted token."""
        known, logits = states.astype(np.float64), []
        for count in range(len(drafted) + 1):
            own, scores = self(known, [*tokens, *drafted[:count]])
            logits.append(scores[-1])
            known = np.concatenate([known, own[-1:]])
        return np.stack(logits)

    def _rms(self, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])

    def _attention(self, x: np.ndarray) -> np.ndarray:
        w, config = self.module.layer, self.config
        size, heads = config["head_dim"], config["num_attention_heads"]
        kv_heads, count = config["num_key_value_heads"], len(x)
        gated = config["model_type"].startswith("qwen3_5")

        def projected(name: str, heads: int, size: int) -> np.ndarray:
            bias = w.get(f"self_attn.{name}_proj.bias", 0.0)
            return (x @ w[f"self_attn.{name}_proj.weight"].T + bias).reshape(count, heads, size)

        q = projected("q", heads, 2 * size if gated else size)
        gates = q[:, :, size:].reshape(count, -1)
        q, k, v = q[:, :, :size], projected("k", kv_heads, size), projected("v", kv_heads, size)
        if "self_attn.q_norm.weight" in w:
            q = self._rms(q) * w["self_attn.q_norm.weight"]
            k = self._rms(k) * w["self_attn.k_norm.weight"]
        q, k = self._rotated(q), self._rotated(k)
        k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size)
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", weights, v).reshape(count, -1)
        if gated:
            out = out / (1 + np.exp(-gates))
        return out @ w["self_attn.o_proj.weight"].T

    def _rotated(self, x: np.ndarray) -> np.ndarray:
        rope = self.config.get("rope_parameters") or self.config
        size = int(x.shape[-1] * rope.get("partial_rotary_factor", 1.0))
        theta = rope.get("rope_theta", 10000.0)
        angles = np.arange(len(x))[:, None] * theta ** (-np.arange(0, size, 2) / size)
        cos, sin = (np.concatenate([f(angles)] * 2, axis=1)[:, None] for f in (np.cos, np.sin))
        turned, rest = x[..., :size], x[..., size:]
        halves = np.concatenate([-turned[..., size // 2 :], turned[..., : size // 2]], axis=-1)
        return np.concatenate([turned * cos + halves * sin, rest], axis=-1)
