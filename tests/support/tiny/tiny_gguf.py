"""GGUF files of tiny models, with metadata and order of weights as llama.cpp's converter writes them.

`make_gguf_oracle.py` compares what these files compute in llama.cpp itself.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from support.tiny.tiny_models import MERGES, SPECIAL, TEMPLATE, vocabulary

MODEL_TYPES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}  # others are alike
_CHANGES: dict[str, dict[str, Any]] = {
    "qwen2moe": {"num_experts": 4, "norm_topk_prob": False},
    "qwen3moe": {"num_experts": 4, "norm_topk_prob": True},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {
        "query_pre_attn_scalar": 16, "rope_local_base_freq": 10000.0, "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
    "falcon": {"bias": False, "num_ln_in_parallel_attn": 2}, "phi3": {"partial_rotary_factor": 0.5},
    "stablelm": {"use_qkv_bias": True}, "lfm2": {"block_auto_adjust_ff_dim": False, "norm_eps": 1e-4},
    "mamba": {"time_step_rank": 6}, "gpt2": {"n_positions": 512}, "nemotron": {"norm_eps": 1e-4},
}  # fmt: skip
_NORMS = {  # names in configurations -> in metadata
    "rms_norm_eps": "rms_", "layer_norm_eps": "", "layer_norm_epsilon": "", "norm_epsilon": "",
    "norm_eps": "",
}  # fmt: skip
_EXPERT = re.compile(r"(?P<layer>.+\.mlp)\.experts\.(\d+\.)?(?P<part>\w+?)(_proj)?(\.weight)?")


def hf_config(arch: str) -> dict[str, Any]:
    """Entries for a tiny decoder whose GGUF architecture is `arch`; what matters is no default."""
    from specport.conformance.models.architectures import configuration

    made = configuration(MODEL_TYPES.get(arch, arch))
    # A tiny vocabulary, few experts; tied where the real ones are.
    tied = {"gemma2", "gemma3", "bloom", "gpt2", "mamba", "lfm2", "starcoder2"}
    made |= {"tie_word_embeddings": arch in tied, "rope_theta": 5000.0}
    made |= _CHANGES.get(arch, {})
    if arch in ("bloom", "gpt2", "mamba"):
        del made["rope_theta"]
    if arch == "falcon":
        made |= {"layer_norm_epsilon": 1e-4}
    return made


def hf_model(arch: str, **changes: Any) -> Any:
    from specport.quantize import random_model

    return random_model.build({**hf_config(arch), **changes})


def write(
    path: Path, arch: str = "llama", model: Any = None, *, kind: str = "F32", exact: bool = False,
    split: int = 0, without: str = "", **changes: Any,
) -> None:  # fmt: skip
    """A GGUF file of `model` (none: one small tensor) with the tiny tokenizer.

    kind:    ggml type of the matrices; `exact` writes what they are rounded to as F32.
    split:   tensors of a part; the parts' names follow from `path`. 0 = one file.
    without: expression of tensors to leave out.
    changes: metadata by key, with "__" for "."; None leaves the key out.
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), arch, split_max_tensors=split)
    tokens = vocabulary()
    values: dict[str, Any] = {
        "general.name": "tiny", f"{arch}.context_length": 256, f"{arch}.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    if model is not None:
        values |= {f"{arch}.{key}": value for key, value in _metadata(arch, model).items()}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in values.items():
        add(writer, key, value)
    rounded = gguf.GGMLQuantizationType[kind]
    tensors = {"token_embd.weight": np.zeros((len(tokens), 32), np.float32)}
    if model is not None:
        tensors = _tensors(arch, model)
    for name, array in tensors.items():
        if without and re.fullmatch(without, name):
            continue
        if array.ndim < 2 or array.shape[-1] % 32 or kind == "F32":
            writer.add_tensor(name, array)
            continue
        data = gguf.quantize(array, rounded)
        if exact:
            writer.add_tensor(name, gguf.dequantize(data, rounded).astype(np.float32))
        else:
            writer.add_tensor(name, data, raw_dtype=rounded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def rope_base(config: Any) -> float:
    """Return the base of the rotary frequencies, that of full attention where layers differ."""
    return float(_rope(config)["rope_theta"])


def _rope(config: Any) -> dict[str, Any]:
    parameters = getattr(config, "rope_parameters", None)  # since transformers 5
    if parameters is None:
        return {"rope_theta": config.rope_theta, **vars(config)}
    return parameters.get("full_attention", parameters)


def _metadata(arch: str, model: Any) -> dict[str, Any]:
    config = model.config
    heads = config.num_attention_heads if arch != "mamba" else 0
    groups = getattr(config, "num_kv_heads", getattr(config, "num_key_value_heads", heads))
    if arch in ("bloom", "gpt2"):
        groups = heads
    inner = {"falcon": "ffn_hidden_size", "gpt2": "n_inner"}.get(arch, "intermediate_size")
    size = None if arch == "bloom" else getattr(config, inner, None)
    size = size or 4 * config.hidden_size
    made: dict[str, Any] = {
        "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": 0 if arch == "mamba" else size, "attention.head_count": heads,
        "attention.head_count_kv": groups,
        "context_length": getattr(config, "max_position_embeddings", 512),
    }  # fmt: skip
    for name, kind in _NORMS.items():
        if hasattr(config, name):
            rms = "rms_" if arch in ("mamba", "lfm2") else kind
            made[f"attention.layer_norm_{rms}epsilon"] = float(getattr(config, name))
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    if arch in ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "nemotron"):
        made |= {"attention.key_length": width, "attention.value_length": width}
    if arch not in ("bloom", "gpt2", "mamba"):
        made["rope.freq_base"] = rope_base(config)
        made["rope.dimension_count"] = int(width * (_rope(config).get("partial_rotary_factor") or 1))
    if arch in ("qwen2moe", "qwen3moe"):
        made |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
        made["expert_feed_forward_length"] = config.moe_intermediate_size
    if arch == "qwen2moe":
        made["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    if arch in ("gemma2", "gemma3", "phi3"):
        made["attention.sliding_window"] = config.sliding_window or 0
    if arch == "gemma2":
        made["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        made["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if arch == "stablelm":
        made["use_parallel_residual"] = config.use_parallel_residual
    if arch == "lfm2":
        made["attention.head_count_kv"] = [groups * (kind == "full_attention") for kind in config.layer_types]
        made["shortconv.l_cache"] = config.conv_L_cache
    if arch == "mamba":
        made |= {"ssm.conv_kernel": config.conv_kernel, "ssm.inner_size": config.intermediate_size}
        made |= {"ssm.state_size": config.state_size, "ssm.time_step_rank": int(config.time_step_rank)}
        made["ssm.dt_b_c_rms"] = False
    return made


def _tensors(arch: str, model: Any) -> dict[str, np.ndarray]:
    import gguf

    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    out = {}
    for name, array in _merged(model):
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        known = name.removeprefix("transformer.") if arch == "bloom" else name
        stem, dot, suffix = known.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, dot, suffix = known, "", ""
        found = names.get_name(stem)
        assert found, name
        out[f"{found}{dot}{suffix}"] = _ordered(arch, found, suffix, array, model.config)
    return out


def _merged(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter, those of experts joined as in a GGUF file."""
    experts: dict[str, list[np.ndarray]] = {}
    for name, tensor in model.state_dict().items():
        array = tensor.detach().numpy().copy()
        match = _EXPERT.fullmatch(name)
        if match is None:
            yield name, array
        elif match["part"] == "gate_up":  # transformers 5
            for part, half in zip(("gate_proj", "up_proj"), np.split(array, 2, axis=1), strict=True):
                yield f"{match['layer']}.experts.{part}.weight", np.ascontiguousarray(half)
        elif array.ndim == 3:
            yield f"{match['layer']}.experts.{match['part']}_proj.weight", array
        else:
            experts.setdefault(f"{match['layer']}.experts.{match['part']}_proj.weight", []).append(array)
    for name, arrays in experts.items():
        yield name, np.stack(arrays)


def _ordered(arch: str, name: str, suffix: str, array: np.ndarray, config: Any) -> np.ndarray:
    """The weights as llama.cpp's converter changes them."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.rpartition(".")[2])
    if arch == "llama" and heads:  # interleaves the halves of each head
        count = getattr(config, heads)
        return array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if (arch in ("gemma2", "gemma3", "nemotron") and name.endswith("norm")) and suffix == "weight":
        return array + 1
    if arch in ("falcon", "bloom") and name.endswith("attn_qkv"):  # queries, then keys, then values
        groups = config.n_head if arch == "bloom" else config.num_kv_heads
        width = config.hidden_size // config.num_attention_heads
        parts = array.reshape(groups, -1, width, *array.shape[1:])
        split = np.split(parts, [parts.shape[1] - 2, parts.shape[1] - 1], axis=1)
        return np.concatenate([part.reshape(-1, *array.shape[1:]) for part in split])
    if arch == "gpt2" and name.rpartition(".")[2] in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
        return np.ascontiguousarray(array.T)
    if name.endswith("ssm_a"):
        return -np.exp(array)
    return array.squeeze() if min(array.shape) == 1 else array
