"""Tiny random models of the published diffusion families, and their forward pass written out.

The reference is written from the families' published code, layer by layer, with the whole text at once and
the family's own mask. It shares no code with what it is compared to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from support.tiny import tiny_models

Weights = dict[str, Any]
VOCAB, MASK = 320, 300
_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "mask_token_id": MASK, "tie_word_embeddings": False, "use_sliding_window": False,
    "torch_dtype": "float32",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "sdar": {
        **_SHAPE, "model_type": "sdar", "architectures": ["SDARForCausalLM"], "head_dim": 16,
        "attention_bias": False, "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None,
        "max_window_layers": 28, "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
    },
    "Dream": {
        **_SHAPE, "model_type": "Dream", "architectures": ["DreamModel"], "rope_theta": 1000000.0,
        "rope_scaling": None, "sliding_window": None, "max_window_layers": 28, "attention_dropout": 0.0,
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    },
    "llada2_moe": {
        **_SHAPE, "model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"], "head_dim": 16,
        "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
        "topk_group": 2,
        "num_shared_experts": 1, "first_k_dense_replace": 1, "rope_theta": 600000, "rope_scaling": None,
        "partial_rotary_factor": 0.5, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "use_bias": False,
        "score_function": "sigmoid", "use_qk_norm": True, "use_qkv_bias": False, "norm_head": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
    },
}  # fmt: skip


def tensors(config: dict[str, Any], seed: int = 0) -> Weights:
    """Return random weights under the names of the published checkpoints."""
    generator = torch.Generator().manual_seed(seed)
    found: Weights = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        found[name] = torch.randn(rows, columns, generator=generator) * 1.3 * columns**-0.5

    def vector(name: str, size: int, around: float) -> None:
        found[name] = around + 0.2 * torch.randn(size, generator=generator)

    def feed_forward(name: str, inner: int) -> None:
        matrix(f"{name}.gate_proj.weight", inner, width)
        matrix(f"{name}.up_proj.weight", inner, width)
        matrix(f"{name}.down_proj.weight", width, inner)

    width, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head, moe = config.get("head_dim", width // heads), config["model_type"] == "llada2_moe"
    embedding = "model.word_embeddings.weight" if moe else "model.embed_tokens.weight"
    found[embedding] = torch.randn(VOCAB, width, generator=generator)
    matrix("lm_head.weight", VOCAB, width)
    vector("model.norm.weight", width, 1.0)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        vector(f"{layer}.input_layernorm.weight", width, 1.0)
        vector(f"{layer}.post_attention_layernorm.weight", width, 1.0)
        if moe:
            matrix(f"{layer}.attention.query_key_value.weight", (heads + 2 * kv) * head, width)
            matrix(f"{layer}.attention.dense.weight", width, heads * head)
            vector(f"{layer}.attention.query_layernorm.weight", head, 1.0)
            vector(f"{layer}.attention.key_layernorm.weight", head, 1.0)
        else:
            for name, count in (("q", heads), ("k", kv), ("v", kv)):
                matrix(f"{layer}.self_attn.{name}_proj.weight", count * head, width)
                if config["model_type"] == "Dream":
                    vector(f"{layer}.self_attn.{name}_proj.bias", count * head, 0.0)
            matrix(f"{layer}.self_attn.o_proj.weight", width, heads * head)
            if config["model_type"] == "sdar":
                vector(f"{layer}.self_attn.q_norm.weight", head, 1.0)
                vector(f"{layer}.self_attn.k_norm.weight", head, 1.0)
        if not moe or number < config["first_k_dense_replace"]:
            feed_forward(f"{layer}.mlp", config["intermediate_size"])
            continue
        matrix(f"{layer}.mlp.gate.weight", config["num_experts"], width)
        vector(f"{layer}.mlp.gate.expert_bias", config["num_experts"], -0.5)  # scores may be below 0
        for expert in range(config["num_experts"]):
            feed_forward(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
        feed_forward(f"{layer}.mlp.shared_experts", config["moe_intermediate_size"])
    return found


def save(folder: Path, kind: str, **changes: Any) -> Weights:
    """Write a folder as the families publish theirs, in two files, with a tokenizer; return the weights."""
    from safetensors.torch import save_file

    config = {**CONFIGS[kind], **changes}
    weights = tensors(config)
    tiny_models.save_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    index: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name].contiguous() for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return weights


def reference(
    config: dict[str, Any],
    weights: Weights,
    ids: Sequence[int],
    visible: NDArray[np.bool_],
    positions: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Return the logits [T, vocab] of a text, in float64.

    visible: [T, T] what each token attends to. positions: [T] of each token; None = one after the other.
    """
    where = [*range(len(ids))] if positions is None else [*positions]
    found: NDArray[np.float32] = _Reference(config, weights, where, visible).logits(ids)
    return found


class _Reference:
    def __init__(
        self, config: dict[str, Any], weights: Weights, positions: list[int], visible: NDArray[np.bool_]
    ) -> None:
        self.config, self.w = config, {name: value.double() for name, value in weights.items()}
        self.moe = config["model_type"] == "llada2_moe"
        self.heads, self.kv = config["num_attention_heads"], config["num_key_value_heads"]
        self.head = config.get("head_dim", config["hidden_size"] // self.heads)
        self.positions, self.hidden = torch.tensor(positions).double(), torch.from_numpy(~visible)

    def logits(self, ids: Sequence[int]) -> Any:
        x = self.w["model.word_embeddings.weight" if self.moe else "model.embed_tokens.weight"][[*ids]]
        for number in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{number}"
            x = x + self.attention(self.norm(x, f"{layer}.input_layernorm"), layer)
            h = self.norm(x, f"{layer}.post_attention_layernorm")
            dense = not self.moe or number < self.config["first_k_dense_replace"]
            x = x + (self.feed_forward if dense else self.experts)(h, f"{layer}.mlp")
        return (self.norm(x, "model.norm") @ self.w["lm_head.weight"].T).float().numpy()

    def norm(self, x: Any, name: str) -> Any:
        size = (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        return self.w[f"{name}.weight"] * x / size

    def attention(self, h: Any, layer: str) -> Any:
        heads, kv = self.heads, self.kv
        if self.moe:
            qkv = (h @ self.w[f"{layer}.attention.query_key_value.weight"].T).unflatten(1, (-1, self.head))
            q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv], qkv[:, heads + kv :]
            q = self.norm(q, f"{layer}.attention.query_layernorm")
            k = self.norm(k, f"{layer}.attention.key_layernorm")
        else:
            names = [f"{layer}.self_attn.{n}_proj" for n in "qkv"]
            rows = [h @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0) for name in names]
            q, k, v = (row.unflatten(1, (-1, self.head)) for row in rows)
            if self.config["model_type"] == "sdar":
                q, k = self.norm(q, f"{layer}.self_attn.q_norm"), self.norm(k, f"{layer}.self_attn.k_norm")
        q, k = self.turn(q), self.turn(k)
        k, v = (part.repeat_interleave(heads // kv, dim=1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / self.head**0.5
        seen = scores.masked_fill(self.hidden, -torch.inf).softmax(dim=-1)
        mixed = torch.einsum("hqk,khd->qhd", seen, v).flatten(1)
        out = "attention.dense" if self.moe else "self_attn.o_proj"
        return mixed @ self.w[f"{layer}.{out}.weight"].T

    def turn(self, x: Any) -> Any:
        """Rotate pairs (i, i + half) of each head's first part, as complex numbers."""
        size = int(self.head * self.config.get("partial_rotary_factor", 1.0))
        half = size // 2
        angle = self.positions[:, None] * self.config["rope_theta"] ** (-torch.arange(half) / half)
        spin = torch.polar(torch.ones_like(angle), angle)[:, None]
        turned = torch.complex(x[..., :half].contiguous(), x[..., half:size].contiguous()) * spin
        return torch.cat([turned.real, turned.imag, x[..., size:]], dim=-1)

    def feed_forward(self, x: Any, name: str) -> Any:
        gate, up, down = (self.w[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        a = x @ gate.T
        return (a * a.sigmoid() * (x @ up.T)) @ down.T

    def experts(self, x: Any, name: str) -> Any:
        return torch.stack([self.mixture(token, name) for token in x])

    def mixture(self, token: Any, name: str) -> Any:
        """Return the answer to one token, one expert after the other."""
        config, count = self.config, self.config["n_group"]
        scores = (self.w[f"{name}.gate.weight"] @ token).sigmoid()
        ranked = scores + self.w[f"{name}.gate.expert_bias"]
        size = config["num_experts"] // count
        worth = [float(ranked[g * size : (g + 1) * size].sort().values[-2:].sum()) for g in range(count)]
        groups = sorted(range(count), key=lambda g: -worth[g])[: config["topk_group"]]
        allowed = [e for e in range(config["num_experts"]) if e // size in groups]
        chosen = sorted(allowed, key=lambda e: -float(ranked[e]))[: config["num_experts_per_tok"]]
        answer = self.feed_forward(token, f"{name}.shared_experts")
        for e in chosen:
            share = config["routed_scaling_factor"] * scores[e] / sum(scores[e] for e in chosen)
            answer = answer + share * self.feed_forward(token, f"{name}.experts.{e}")
        return answer


def native_mask(length: int, block: int | None) -> NDArray[np.bool_]:
    """Return [T, T] the mask of a family: block-causal, or everything (None)."""
    if block is None:
        return np.ones((length, length), dtype=np.bool_)
    blocks = np.arange(length) // block
    return blocks[:, None] >= blocks[None]
