"""Completion of what transformers' GGUF loader leaves out of the configuration, read from the file itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from specport.errors import ModelError
from specport.models.gguf.file import GgufHeader

ROPE_FACTORS = "rope_freqs.weight"
DEFAULT_BASE = 10_000.0  # of rotary frequencies in a file that names none, as in llama.cpp
# Llama 3.1 to 3.3 share these; only the factor differs.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@contextmanager
def lean_loader(half: bool) -> Iterator[None]:
    """Make transformers' GGUF loader cheaper while the context lasts.

    The loader rebuilds gguf's table of tensor names for each module of the model; here it is cached. The
    loader also holds all tensors in float32 until the last is read; with `half`, matrices are held in
    float16.
    """
    import gguf

    name_map, dequantize = gguf.get_tensor_name_map, gguf.dequantize

    def halved(data: Any, kind: Any) -> Any:
        array = dequantize(data, kind)
        return array.astype(np.float16) if array.ndim > 1 else array

    gguf.get_tensor_name_map = functools.cache(name_map)
    gguf.dequantize = halved if half else dequantize
    try:
        yield
    finally:
        gguf.get_tensor_name_map, gguf.dequantize = name_map, dequantize


def complete_config(config: Any, header: GgufHeader) -> None:
    """Complete `config` in place.

    Raises ModelError where the file has rope scaling that it cannot express.
    """
    meta, prefix = header.metadata, header.architecture
    head_dim = meta.get(f"{prefix}.attention.key_length")
    if head_dim is not None:
        config.head_dim = int(head_dim)
    if ROPE_FACTORS in header.tensors:
        _scale_rope(config, _llama3_rope(header))
    scaling = meta.get(f"{prefix}.rope.scaling.type")
    if scaling not in (None, "none") and ROPE_FACTORS not in header.tensors:
        factor = float(meta.get(f"{prefix}.rope.scaling.factor", 1.0))
        if scaling not in ("linear", "yarn"):
            raise ModelError(f"{header.path}: rope scaling {scaling!r} is not supported")
        rope: dict[str, Any] = {"rope_type": scaling, "factor": factor}
        original = meta.get(f"{prefix}.rope.scaling.original_context_length")
        if scaling == "yarn" and original is not None:
            rope["original_max_position_embeddings"] = int(original)
        _scale_rope(config, rope)


def _scale_rope(config: Any, rope: dict[str, Any]) -> None:
    """Put the scaling of positions into `config`.

    transformers 5 keeps it beside the base, for each kind of layer where they differ: only full attention is
    scaled (gemma3). transformers 4 keeps it apart.
    """
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        config.rope_scaling = rope
    else:
        parameters.get("full_attention", parameters).update(rope)


def _llama3_rope(header: GgufHeader) -> dict[str, Any]:
    """Return Llama 3's rope scaling, recovered from the frequency factors in the file."""
    (count,), kind, offset = header.tensors[ROPE_FACTORS]
    if kind != 0:
        raise ModelError(f"{header.path}: {ROPE_FACTORS} is not float32")
    factors = np.fromfile(header.path, "<f4", count, offset=header.data_start + offset)
    factor = round(float(factors.max()), 3)
    rope = {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
    base = float(header.metadata.get(f"{header.architecture}.rope.freq_base", DEFAULT_BASE))
    expected = [_llama3_factor(base ** (i / count), factor) for i in range(count)]
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ModelError(
            f"{header.path}: unknown rope frequency factors", "use the model's Hugging Face folder"
        )
    return rope


def _llama3_factor(inverse_frequency: float, factor: float) -> float:
    context = LLAMA3_ROPE["original_max_position_embeddings"]
    low, high = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    wavelength = 2 * math.pi * inverse_frequency
    if wavelength < context / high:
        return 1.0
    if wavelength > context / low:
        return factor
    smooth = (context / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
