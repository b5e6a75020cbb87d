"""Tiny models with recurrent layers beside attention, for `tiny.py`: of Qwen3.5's and of LFM2's kind.

Their layers take turns. The state of a recurrent layer fades slowly enough that a token far back matters,
or a wrong state would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
LAYERS, WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM = 4, 64, 128, 4, 2, 16
KEY_HEADS, VALUE_HEADS, STATE = 2, 4, 16  # of linear attention; a head's state is [STATE, STATE]
_SHAPE = {
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "tie_word_embeddings": False,
    "torch_dtype": "float32",
}  # fmt: skip


def qwen3_5() -> dict[str, Any]:
    """Return the config: gated delta nets (arXiv 2412.06464) with convolutions over 4 tokens."""
    return _SHAPE | {
        "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "head_dim": HEAD_DIM,
        "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2), "rms_norm_eps": 1e-6,
        "linear_conv_kernel_dim": 4, "linear_num_key_heads": KEY_HEADS, "linear_num_value_heads": VALUE_HEADS,
        "linear_key_head_dim": STATE, "linear_value_head_dim": STATE,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1], "mrope_interleaved": True,
        },
    }  # fmt: skip


def lfm2() -> dict[str, Any]:
    """Return the config: gated convolutions over 3 tokens, and attention."""
    return _SHAPE | {
        "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "norm_eps": 1e-5, "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention"] * (LAYERS // 2), "block_auto_adjust_ff_dim": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip


def qwen3_5_weights(rng: np.random.Generator, vocab: int) -> Weights:
    matrix = matrices(rng)
    keys, values = KEY_HEADS * STATE, VALUE_HEADS * STATE
    out = {"model.embed_tokens.weight": matrix(vocab, WIDTH, np.sqrt(WIDTH))}
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        if n % 2:
            attention = f"{layer}.self_attn"
            out[f"{attention}.q_proj.weight"] = matrix(2 * HEADS * HEAD_DIM, WIDTH, 1.5)  # with its gate
            out[f"{attention}.k_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, WIDTH, 1.5)
            out[f"{attention}.v_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, WIDTH, 1.5)
            out[f"{attention}.o_proj.weight"] = matrix(WIDTH, HEADS * HEAD_DIM, 2.0)
            out[f"{attention}.q_norm.weight"] = np.zeros(HEAD_DIM, np.float32)  # plus one
            out[f"{attention}.k_norm.weight"] = np.zeros(HEAD_DIM, np.float32)
        else:
            linear = f"{layer}.linear_attn"
            out[f"{linear}.in_proj_qkv.weight"] = matrix(2 * keys + values, WIDTH, 1.5)
            out[f"{linear}.in_proj_z.weight"] = matrix(values, WIDTH, 1.5)
            out[f"{linear}.in_proj_b.weight"] = matrix(VALUE_HEADS, WIDTH, 1.0)
            out[f"{linear}.in_proj_a.weight"] = matrix(VALUE_HEADS, WIDTH, 1.0)
            out[f"{linear}.conv1d.weight"] = matrix(2 * keys + values, 4, 1.5)[:, None]
            out[f"{linear}.dt_bias"] = np.full(VALUE_HEADS, -2.0, np.float32)
            out[f"{linear}.A_log"] = np.log(np.linspace(0.05, 0.5, VALUE_HEADS, dtype=np.float32))
            out[f"{linear}.norm.weight"] = np.ones(STATE, np.float32)
            out[f"{linear}.out_proj.weight"] = matrix(WIDTH, values, 2.0)
        out[f"{layer}.mlp.gate_proj.weight"] = matrix(INNER, WIDTH, 1.0)
        out[f"{layer}.mlp.up_proj.weight"] = matrix(INNER, WIDTH, 1.0)
        out[f"{layer}.mlp.down_proj.weight"] = matrix(WIDTH, INNER, 1.5)
        out[f"{layer}.input_layernorm.weight"] = np.zeros(WIDTH, np.float32)
        out[f"{layer}.post_attention_layernorm.weight"] = np.zeros(WIDTH, np.float32)
    out["model.norm.weight"] = np.zeros(WIDTH, np.float32)
    out["lm_head.weight"] = matrix(vocab, WIDTH, 2.5)
    return out


def lfm2_weights(rng: np.random.Generator, vocab: int) -> Weights:
    matrix = matrices(rng)
    ones = np.ones(WIDTH, np.float32)
    out = {"model.embed_tokens.weight": matrix(vocab, WIDTH, np.sqrt(WIDTH))}
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        if n % 2:
            attention = f"{layer}.self_attn"
            out[f"{attention}.q_proj.weight"] = matrix(HEADS * HEAD_DIM, WIDTH, 1.5)
            out[f"{attention}.k_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, WIDTH, 1.5)
            out[f"{attention}.v_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, WIDTH, 1.5)
            out[f"{attention}.out_proj.weight"] = matrix(WIDTH, HEADS * HEAD_DIM, 1.5)
            out[f"{attention}.q_layernorm.weight"] = np.ones(HEAD_DIM, np.float32)
            out[f"{attention}.k_layernorm.weight"] = np.ones(HEAD_DIM, np.float32)
        else:
            out[f"{layer}.conv.in_proj.weight"] = matrix(3 * WIDTH, WIDTH, 1.0)
            out[f"{layer}.conv.conv.weight"] = matrix(WIDTH, 3, 1.5)[:, None]
            out[f"{layer}.conv.out_proj.weight"] = matrix(WIDTH, WIDTH, 1.5)
        out[f"{layer}.feed_forward.w1.weight"] = matrix(INNER, WIDTH, 1.0)
        out[f"{layer}.feed_forward.w3.weight"] = matrix(INNER, WIDTH, 1.0)
        out[f"{layer}.feed_forward.w2.weight"] = matrix(WIDTH, INNER, 1.5)
        out[f"{layer}.operator_norm.weight"] = ones
        out[f"{layer}.ffn_norm.weight"] = ones
    out["model.embedding_norm.weight"] = ones
    out["lm_head.weight"] = matrix(vocab, WIDTH, 2.5)
    return out


def matrices(rng: np.random.Generator) -> Callable[[int, int, float], NDArray[np.float32]]:
    """Return a function that draws matrices of so many rows and columns, scaled by a gain."""

    def matrix(rows: int, columns: int, gain: float) -> NDArray[np.float32]:
        spread = np.float32(gain / np.sqrt(columns))
        return rng.standard_normal((rows, columns), dtype=np.float32) * spread

    return matrix
