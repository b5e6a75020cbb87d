"""Read the scaling of rotary positions from a GGUF file, in the form of a transformers configuration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from specport.errors import ModelError
from specport.models.gguf.values import Values

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
DEFAULT_BASE = 10_000.0  # of rotary frequencies in a file that names none, as in llama.cpp
# Llama 3.1 to 3.3 share these; only the factor differs.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_HINT = "use the model's Hugging Face folder"


def scaling(values: Values) -> dict[str, Any] | None:
    """Return the entry `rope_scaling`, None where positions are not scaled.

    Raises ModelError where the file has a scaling that transformers cannot express.
    """
    tensors = values.header.tensors
    if FACTORS in tensors:
        return _llama3(values)
    if LONG in tensors or SHORT in tensors:
        return _longrope(values)
    kind = values.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{values.header.path}: rope scaling {kind!r} is not supported", _HINT)
    rope: dict[str, Any] = {"rope_type": kind, "factor": values.real("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        original = values.whole("rope.scaling.original_context_length", None)
        betas = {name: values.real(f"rope.scaling.yarn_{name}", None) for name in ("beta_fast", "beta_slow")}
        named = {"original_max_position_embeddings": original, **betas}
        rope |= {name: value for name, value in named.items() if value is not None}
    return rope


def _longrope(values: Values) -> dict[str, Any]:
    """Return Phi-3's scaling: factors of each frequency for short and for long texts."""
    tensors = values.header.tensors
    if LONG not in tensors or SHORT not in tensors:
        missing = SHORT if LONG in tensors else LONG
        raise ModelError(f"{values.header.path} has no tensor {missing}", _HINT)
    rope: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": values.header.floats(LONG).tolist(),
        "short_factor": values.header.floats(SHORT).tolist(),
    }
    attention = values.real("rope.scaling.attn_factor", 0.0)
    if attention:
        rope["attention_factor"] = attention
    return rope


def _llama3(values: Values) -> dict[str, Any]:
    """Return Llama 3's scaling, recovered from the factors of each frequency in the file."""
    factors = values.header.floats(FACTORS)
    count = len(factors)
    if not count or not np.isfinite(factors).all():
        raise ModelError(f"{values.header.path}: {FACTORS} has no usable factors", _HINT)
    factor = round(float(factors.max()), 3)
    base = values.real("rope.freq_base", DEFAULT_BASE)
    expected = [_llama3_factor(base ** (i / count), factor) for i in range(count)]
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ModelError(f"{values.header.path}: unknown rope frequency factors", _HINT)
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _llama3_factor(inverse_frequency: float, factor: float) -> float:
    context = LLAMA3["original_max_position_embeddings"]
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    wavelength = 2 * math.pi * inverse_frequency
    if wavelength < context / high:
        return 1.0
    if wavelength > context / low:
        return factor
    smooth = (context / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
