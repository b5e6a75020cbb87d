"""Refuse GGUF files whose metadata change a model in ways that the configuration does not express."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specport.errors import ModelError
from specport.models.gguf.values import Values

# Keys that change what a model computes, with the values that change nothing. Where an architecture does not
# read one and the file has another value, the file is refused. Sliding windows are no part of it: where an
# architecture does not read one, llama.cpp does not apply it either (Mistral's in files of llama).
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0,), "expert_shared_count": (0,), "nextn_predict_layers": (0,),
    "leading_dense_block_count": (0,), "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1), "moe_every_n_layers": (0, 1), "interleave_moe_layer_step": (0, 1),
    "attention.scale": (), "logit_scale": (0.0, 1.0), "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0), "attention.clamp_kqv": (0.0,), "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,), "final_logit_softcapping": (0.0,), "router_logit_softcapping": (0.0,),
    "attention.causal": (True,), "pooling_type": (0,), "attention.temperature_scale": (0.0,),
    "attention.shared_kv_layers": (0,), "rope.scale_linear": (0.0, 1.0), "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0), "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0), "rope.scaling.yarn_attn_factor": (0.0, 1.0),
    "rope.freq_base_swa": (), "ssm.dt_b_c_rms": (False,), "ssm.group_count": (0, 1),
}  # fmt: skip


def check(values: Values) -> None:
    """Raise ModelError for a key that changes the model and that was not read from `values`."""
    header = values.header
    for key, same in _NEUTRAL.items():
        value = header.metadata.get(f"{values.prefix}.{key}")
        if value is None or key in values.read or any(_equal(value, one) for one in same):
            continue
        raise ModelError(
            f"{header.path}: {values.prefix}.{key} is not supported", "use the model's Hugging Face folder"
        )


def _equal(value: Any, other: Any) -> bool:
    return isinstance(value, (bool, int, float)) and value == other
