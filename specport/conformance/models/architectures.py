"""A table of decoder architectures: for each, a configuration of a tiny model of random weights.

Plain data by `model_type` of Hugging Face's transformers. `quantize/random_model.py` makes a folder of a row.
An installed transformers may not have them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specport.conformance.models.tiny import vocabulary

WINDOW = 16  # tokens of a sliding window: short texts already leave it

# What a row does not change. Configurations ignore entries that they do not have.
_COMMON: Mapping[str, Any] = {
    "vocab_size": len(vocabulary()), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip

_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {
    "num_experts": 16, "num_local_experts": 16, "n_routed_experts": 16, "moe_num_experts": 16,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_k": 2,
}  # fmt: skip
_LATENT = {  # multi-head latent attention
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4, "head_dim": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1,
}  # fmt: skip
_DELTA_NET = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 4, "linear_num_key_heads": 8, "linear_num_value_heads": 16,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
}  # fmt: skip
_SHORT_CONVOLUTIONS = {
    "layer_types": ["conv", "full_attention", "conv", "conv"], "num_hidden_layers": 4, "conv_L_cache": 3,
}  # fmt: skip
_MAMBA = {
    "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 16,
    "mamba_n_groups": 1, "mamba_num_heads": 8, "mamba_head_dim": 16, "state_size": 8, "ssm_state_size": 8,
    "n_groups": 1, "num_heads": 8, "head_dim": 16,
}  # fmt: skip

_CHANGES: Mapping[str, Mapping[str, Any]] = {
    # rotary positions, grouped queries
    "llama": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "olmo": {}, "olmo2": {}, "arcee": {}, "seed_oss": {},
    "apertus": {}, "helium": {}, "hunyuan_v1_dense": {}, "ernie4_5": {}, "granite": {}, "cohere": {},
    "bitnet": {}, "diffllama": {}, "nemotron": {}, "cwm": {}, "jais2": {}, "nanochat": {}, "youtu": _LATENT,
    "glm": {}, "glm4": {}, "phi3": {}, "starcoder2": {}, "persimmon": {}, "stablelm": {},
    "phi": {"num_key_value_heads": 4},
    # no positions in some layers
    "smollm3": {"no_rope_layers": [1, 0]},
    # windows in all or some layers
    "mistral": {"sliding_window": WINDOW}, "ministral": _MIXED, "ministral3": {}, "gemma3_text": _MIXED,
    "cohere2": _MIXED, "olmo3": _MIXED, "exaone4": _MIXED,
    "qwen2-windows": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, **_MIXED},
    "gemma3n_text": {
        **_MIXED, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(vocabulary()),
        "num_kv_shared_layers": 2, "num_hidden_layers": 4, "laurel_rank": 8, "altup_num_inputs": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4, "global_head_dim": 32, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": len(vocabulary()), "num_kv_shared_layers": 2,
    },
    # soft caps
    "gemma2": {**_MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "vaultgemma": {**_MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    # ALiBi
    "bloom": {}, "mpt": {"max_seq_len": 512},
    "falcon-alibi": {
        "model_type": "falcon", "alibi": True, "new_decoder_architecture": False, "head_dim": None,
    },
    # one or few heads of keys and values, parallel attention, learned positions
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None},
    "gpt_bigcode": {"multi_query": True}, "gpt_neox": {}, "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8}, "gpt2": {}, "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": WINDOW},
    "biogpt": {}, "xglm": {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4},
    # attention sinks
    "gpt_oss": {**_EXPERTS, **_MIXED},
    # mixtures of experts
    "mixtral": _EXPERTS, "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": _EXPERTS, "olmoe": {**_EXPERTS, "num_key_value_heads": 4}, "flex_olmo": _EXPERTS,
    "phimoe": _EXPERTS, "granitemoe": _EXPERTS,
    "granitemoeshared": {**_EXPERTS, "shared_intermediate_size": 32},
    "ernie4_5_moe": _EXPERTS, "glm4_moe": {**_EXPERTS, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "dots1": {**_EXPERTS, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}, "minimax_m2": _EXPERTS,
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": 2}, "jetmoe": _EXPERTS,
    "llama4_text": {**_EXPERTS, "intermediate_size_mlp": 64, "attention_chunk_size": 512},
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512,
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 16, "moe_top_k": 2},
    },
    # latent attention
    "deepseek_v2": {**_EXPERTS, **_LATENT}, "deepseek_v3": {**_EXPERTS, **_LATENT},
    "glm4_moe_lite": {**_EXPERTS, **_LATENT},
    # a gated delta net or short convolutions in some layers
    "qwen3_next": {**_EXPERTS, **_DELTA_NET, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": _DELTA_NET,
    "qwen3_5_moe_text": {**_EXPERTS, **_DELTA_NET, "shared_expert_intermediate_size": 32},
    "olmo_hybrid": _DELTA_NET, "lfm2": _SHORT_CONVOLUTIONS,
    "lfm2_moe": {**_EXPERTS, **_SHORT_CONVOLUTIONS, "num_dense_layers": 1},
    # state spaces
    "mamba": _MAMBA, "mamba2": _MAMBA, "falcon_mamba": _MAMBA,
    "bamba": {**_MAMBA, "attn_layer_indices": [1]}, "falcon_h1": {**_MAMBA, "mamba_d_ssm": 128},
    "jamba": {**_MAMBA, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {**_EXPERTS, **_MAMBA, "layer_types": ["mamba", "attention"]},
    "recurrent_gemma": {
        "lru_width": 64, "attention_window_size": WINDOW, "block_types": ["recurrent", "attention"],
    },
}  # fmt: skip

ARCHITECTURES = tuple(_CHANGES)


def configuration(name: str) -> dict[str, Any]:
    """Return the entries of a row's config.json, `model_type` among them; a row's None leaves one out."""
    entries = {"model_type": name, **_COMMON, **_CHANGES[name]}
    return {key: value for key, value in entries.items() if value is not None}
