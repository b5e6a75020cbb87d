"""Make a transformers configuration from the metadata of a GGUF file, for each architecture that loads.

transformers' own reading leaves out much that changes what a model computes: partial rotation, soft caps,
sizes of experts, biases. So the whole configuration is made here. What the metadata say beyond it is refused.
The meaning of the keys is that of llama.cpp (src/llama-model.cpp, convert_hf_to_gguf.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from specport.quantize.convert.from_gguf import neutral, rope

from specport.errors import ModelError
from specport.models.gguf.file import GgufHeader
from specport.models.gguf.values import Values

Entries = dict[str, Any]

_FOLDER = "use the model's Hugging Face folder"
_RMS, _LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_GEMMA_LOCAL_BASE = 10_000.0  # of gemma3's sliding layers, which files do not name
_GEMMA_PATTERN = 6  # one layer in so many attends to all tokens


def entries(header: GgufHeader) -> Entries:
    """Return the entries of a config.json, `model_type` among them. Raises ModelError."""
    if header.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{header.path}: GGUF architecture {header.architecture!r} is not supported", _FOLDER
        )
    kind = str(header.metadata.get("general.type", "model"))
    if kind != "model":
        raise ModelError(f"{header.path} holds an {kind[:20]}, not a model", "name the model")
    model_type, make = ARCHITECTURES[header.architecture]
    values = Values(header, header.architecture)
    embeddings = header.tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise ModelError(f"{header.path} has no embeddings (token_embd.weight)", "download the file again")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > embeddings.shape[1]:
        count = f"{len(tokens)} tokens but {embeddings.shape[1]} embeddings"
        raise ModelError(f"{header.path}: {count}", "use another file of this model")
    made = {
        "model_type": model_type, "vocab_size": embeddings.shape[1],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        # The tokenizer's ids are added later; a default may lie outside of the vocabulary.
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        **make(values),
    }  # fmt: skip
    neutral.check(values)
    return made


def _size(values: Values, key: str, default: int | None = None, *, most: int = (1 << 31) - 1) -> int:
    """Return a number that must be positive and of a size that a model can have."""
    number = values.whole(key) if default is None else values.whole(key, default)
    if not 0 < number <= most:
        raise values.wrong(key, number)
    return number


_MOST_EXPERTS = 1 << 13  # transformers 4 makes a module for each


def _layers(values: Values) -> int:
    """Return the number of layers: at most that of the tensors, as each has some. Empty ones fill memory."""
    number = _size(values, "block_count")
    if number > len(values.header.tensors):
        raise values.wrong("block_count", number)
    return number


def _heads(values: Values) -> tuple[int, int, int]:
    """Return the numbers of heads of queries and of keys, and the width of a head."""
    heads = _size(values, "attention.head_count")
    groups = _size(values, "attention.head_count_kv", heads)
    width = _size(values, "attention.key_length", _size(values, "embedding_length") // heads)
    if heads % groups or values.whole("attention.value_length", width) != width:
        raise ModelError(
            f"{values.header.path}: {heads} heads of queries, {groups} of keys and values that are not alike",
            _FOLDER,
        )
    return heads, groups, width


def _decoder(values: Values, *, norm: str = "rms_norm_eps", partial: bool = False) -> Entries:
    """Return what most decoders with rotary positions have.

    norm:    the configuration's name for what is added to a variance.
    partial: only some dimensions of a head may be rotated.
    """
    heads, groups, width = _heads(values)
    made = {
        "hidden_size": _size(values, "embedding_length"),
        "intermediate_size": _size(values, "feed_forward_length"),
        "num_hidden_layers": _layers(values),
        "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": width,
        "max_position_embeddings": _size(values, "context_length"),
        norm: _norm(values), "rope_theta": values.real("rope.freq_base", rope.DEFAULT_BASE),
    }  # fmt: skip
    rotated = _size(values, "rope.dimension_count", width)
    if partial and rotated <= width:
        made["partial_rotary_factor"] = share(rotated, width)
    elif rotated != width:
        raise values.wrong("rope.dimension_count", rotated)
    scaling = rope.scaling(values)
    return {**made, "rope_scaling": scaling} if scaling else made


def _norm(values: Values) -> float:
    """Return what is added to a variance; converters write it under either of two names."""
    rms = values.real(_RMS, None)
    return values.real(_LAYER) if rms is None else rms


def share(part: int, whole: int) -> float:
    """Return a factor with which `int(whole * factor)` is `part`."""
    factor = part / whole
    return factor if int(whole * factor) == part else math.nextafter(factor, math.inf)


def _has(values: Values, ending: str) -> bool:
    """Return whether the first layer has a tensor."""
    return f"blk.0.{ending}" in values.header.tensors


def _llama(values: Values) -> Entries:
    biases = {"attention_bias": _has(values, "attn_q.bias"), "mlp_bias": _has(values, "ffn_up.bias")}
    return {**_decoder(values), **biases}


def _qwen2(values: Values) -> Entries:
    return _decoder(values)


def _qwen3(values: Values) -> Entries:
    return {**_decoder(values), "attention_bias": _has(values, "attn_q.bias")}


def _experts(values: Values) -> Entries:
    inner = _size(values, "expert_feed_forward_length", _size(values, "feed_forward_length"))
    return {
        **_decoder(values), "num_experts": _size(values, "expert_count", most=_MOST_EXPERTS),
        "num_experts_per_tok": _size(values, "expert_used_count"), "moe_intermediate_size": inner,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def _qwen2moe(values: Values) -> Entries:
    shared = _size(values, "expert_shared_feed_forward_length", _size(values, "feed_forward_length"))
    return {**_experts(values), "shared_expert_intermediate_size": shared, "norm_topk_prob": False}


def _qwen3moe(values: Values) -> Entries:
    bias = _has(values, "attn_q.bias")
    return {**_experts(values), "norm_topk_prob": True, "attention_bias": bias}


def _falcon(values: Values) -> Entries:
    made = _decoder(values, norm="layer_norm_epsilon")
    groups = made.pop("num_key_value_heads")
    made |= {"ffn_hidden_size": made.pop("intermediate_size"), "num_kv_heads": groups}
    del made["head_dim"]  # follows from the others
    two = _has(values, "attn_norm_2.weight")
    # The 7B has one head of keys and values, the larger ones several. Others (falcon-rw) have no files.
    new = {"new_decoder_architecture": groups > 1 or two, "num_ln_in_parallel_attn": 2 if two else 1}
    return {**made, **new, "multi_query": groups == 1, "parallel_attn": True, "bias": False, "alibi": False}


def _phi3(values: Values) -> Entries:
    made = _decoder(values, partial=True)
    window = values.whole("attention.sliding_window", 0)
    made |= {"sliding_window": window or None}
    original = values.whole("rope.scaling.original_context_length", made["max_position_embeddings"])
    return {**made, "original_max_position_embeddings": original}


def _bloom(values: Values) -> Entries:
    return {
        "hidden_size": _size(values, "embedding_length"), "n_layer": _layers(values),
        "n_head": _size(values, "attention.head_count"), "layer_norm_epsilon": _norm(values),
        "seq_length": values.whole("context_length", 2048),
    }  # fmt: skip


def _gpt2(values: Values) -> Entries:
    return {
        "n_embd": _size(values, "embedding_length"), "n_layer": _layers(values),
        "n_head": _size(values, "attention.head_count"), "layer_norm_epsilon": _norm(values),
        "n_positions": _size(values, "context_length"), "n_inner": _size(values, "feed_forward_length"),
    }  # fmt: skip


def _stablelm(values: Values) -> Entries:
    return {
        **_decoder(values, norm="layer_norm_eps", partial=True), "use_qkv_bias": _has(values, "attn_q.bias"),
        "use_parallel_residual": not _has(values, "ffn_norm.weight"),
        "qk_layernorm": _has(values, "attn_q_norm.weight"),
    }  # fmt: skip


def _starcoder2(values: Values) -> Entries:
    return {**_decoder(values, norm="norm_epsilon"), "use_bias": _has(values, "attn_q.bias")}


def _mamba(values: Values) -> Entries:
    width, inner = _size(values, "embedding_length"), _size(values, "ssm.inner_size")
    expand = inner / width if inner % width else inner // width
    return {
        "hidden_size": width, "expand": expand, "intermediate_size": inner,
        "num_hidden_layers": _layers(values), "layer_norm_epsilon": _norm(values),
        "conv_kernel": _size(values, "ssm.conv_kernel"), "state_size": _size(values, "ssm.state_size"),
        "time_step_rank": _size(values, "ssm.time_step_rank"), "use_bias": _has(values, "ssm_in.bias"),
        "use_conv_bias": _has(values, "ssm_conv1d.bias"),
    }  # fmt: skip


def _nemotron(values: Values) -> Entries:
    biases = {"attention_bias": _has(values, "attn_q.bias"), "mlp_bias": _has(values, "ffn_up.bias")}
    return {**_decoder(values, norm="norm_eps", partial=True), **biases}


def _gemma2(values: Values) -> Entries:
    made = _decoder(values)
    return {
        **made, "attn_logit_softcapping": values.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": values.real("final_logit_softcapping", 30.0),
        "sliding_window": _size(values, "attention.sliding_window", 4096),
        "query_pre_attn_scalar": _queries(made, layers_of_27b=46),
        "layer_types": _layer_types(made["num_hidden_layers"], 2),
    }  # fmt: skip


def _gemma3(values: Values) -> Entries:
    made = _decoder(values)
    pattern = _size(values, "attention.sliding_window_pattern", _GEMMA_PATTERN)
    return {
        **made, "sliding_window": _size(values, "attention.sliding_window"),
        "rope_theta": values.real("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": values.real("rope.freq_base_swa", _GEMMA_LOCAL_BASE),
        "final_logit_softcapping": values.real("final_logit_softcapping", 0.0) or None,
        "query_pre_attn_scalar": _queries(made, layers_of_27b=62),
        "layer_types": _layer_types(made["num_hidden_layers"], pattern),
    }  # fmt: skip


def _queries(made: Entries, layers_of_27b: int) -> int:
    """Return by the root of what gemma models divide queries. Files do not say it; those of 27B differ."""
    if made["num_hidden_layers"] == layers_of_27b:
        return int(made["hidden_size"] // made["num_attention_heads"])
    return int(made["head_dim"])


def _layer_types(layers: int, pattern: int) -> list[str]:
    return ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]


def _lfm2(values: Values) -> Entries:
    counts = values.get("attention.head_count_kv")
    try:
        groups = [int(count) for count in counts]
    except (TypeError, ValueError):
        raise values.wrong("attention.head_count_kv", counts) from None
    layers, heads = _layers(values), _size(values, "attention.head_count")
    if len(groups) != layers or len({*groups} - {0}) != 1:
        raise values.wrong("attention.head_count_kv", counts)
    return {
        "hidden_size": _size(values, "embedding_length"), "num_hidden_layers": layers,
        "intermediate_size": _size(values, "feed_forward_length"), "block_auto_adjust_ff_dim": False,
        "num_attention_heads": heads, "num_key_value_heads": max(groups),
        "layer_types": ["full_attention" if count else "conv" for count in groups],
        "max_position_embeddings": _size(values, "context_length"), "norm_eps": _norm(values),
        "rope_theta": values.real("rope.freq_base", rope.DEFAULT_BASE),
        "conv_L_cache": _size(values, "shortconv.l_cache"), "conv_bias": _has(values, "shortconv.conv.bias"),
    }  # fmt: skip


# GGUF architecture -> transformers' model_type and its configuration. `models.source` lists them, too.
ARCHITECTURES: Mapping[str, tuple[str, Callable[[Values], Entries]]] = {
    "llama": ("llama", _llama), "qwen2": ("qwen2", _qwen2), "qwen2moe": ("qwen2_moe", _qwen2moe),
    "qwen3": ("qwen3", _qwen3), "qwen3moe": ("qwen3_moe", _qwen3moe), "gemma2": ("gemma2", _gemma2),
    "gemma3": ("gemma3_text", _gemma3), "phi3": ("phi3", _phi3), "falcon": ("falcon", _falcon),
    "bloom": ("bloom", _bloom), "gpt2": ("gpt2", _gpt2), "stablelm": ("stablelm", _stablelm),
    "starcoder2": ("starcoder2", _starcoder2), "nemotron": ("nemotron", _nemotron),
    "mamba": ("mamba", _mamba), "lfm2": ("lfm2", _lfm2),
}  # fmt: skip
