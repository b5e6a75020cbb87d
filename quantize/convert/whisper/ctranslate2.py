"""Read a Whisper model from CTranslate2's format, as faster-whisper has it: model.bin and small files.

The file is a list of named arrays ("ModelLoader" in CTranslate2's documentation of `ModelSpec.save`). It is
untrusted: each length is checked against what is left of it.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models.json_file import read_json
from specport.models.kinds.whisper import CTRANSLATE2_FILE
from specport.models.safe_files import UnsafeFile, regular

Array = NDArray[Any]
_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # bfloat16 is 5, which numpy lacks
_BFLOAT16 = 5
_OLDEST = 4  # earlier versions note no type
_MOST_ARRAYS = 100_000
_HINT = "download the model again"


def read(folder: Path) -> tuple[dict[str, Array], dict[str, Any], dict[str, Any]]:
    """Return weights in transformers' names, and config and generation config in transformers' form.

    Raises ModelError for a damaged file, or one that holds no Whisper model.
    """
    path = folder / CTRANSLATE2_FILE
    try:
        size = regular(path).stat().st_size
        with open(path, "rb") as file:
            arrays = _Reader(file, size, path).arrays()
    except (OSError, UnsafeFile, ValueError) as error:  # a shape or a text that is none
        raise ModelError(f"{path} cannot be read: {error}", _HINT) from error
    try:
        weights = _renamed(arrays)
        config = _config(arrays, weights)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path} holds no complete Whisper model: {error}", _HINT) from error
    return weights, config, _generation(read_json(folder / "config.json"))


class _Reader:
    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file, self._left, self._path = file, size, path

    def arrays(self) -> dict[str, Array]:
        """Return all arrays by name; quantized ones as float32."""
        version = self._number("<I")
        if not _OLDEST <= version < 1000:
            raise ModelError(f"{self._path} is no CTranslate2 model of version {_OLDEST} or later", _HINT)
        spec = self._string()
        if spec != "WhisperSpec":
            raise ModelError(f"{self._path} holds a {spec[:40]!r}, no Whisper model", "name a Whisper model")
        self._number("<I")
        count = self._number("<I")
        if count > _MOST_ARRAYS:
            raise ModelError(f"{self._path} is damaged: it names {count} arrays", _HINT)
        found = dict(self._array() for _ in range(count))
        for name in [name for name in found if f"{name}_scale" in found]:
            found[name] = _dequantized(found[name], found.pop(f"{name}_scale"))
        return found

    def _array(self) -> tuple[str, Array]:
        name, rank = self._string(), self._number("<B")
        shape = tuple(self._number("<I") for _ in range(rank))
        kind, size = self._number("<B"), self._number("<I")
        if kind == _BFLOAT16:
            wide = np.frombuffer(self._take(size), "<u2").astype("<u4") << 16
            values: Array = wide.view("<f4")
        elif kind in _TYPES:
            dtype = np.dtype(_TYPES[kind])
            if size % dtype.itemsize:
                raise ModelError(f"{self._path} is damaged: {name[:80]!r} has {size} bytes", _HINT)
            values = np.frombuffer(self._take(size), dtype)
        else:
            raise ModelError(f"{self._path}: {name[:80]!r} is of the unknown type {kind}", _HINT)
        if values.size != math.prod(shape):
            raise ModelError(f"{self._path} is damaged: {name[:80]!r} is not {shape}", _HINT)
        return name, values.reshape(shape)

    def _string(self) -> str:
        return self._take(self._number("<H")).rstrip(b"\0").decode()

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(value)

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise ModelError(f"{self._path} is truncated", _HINT)
        self._left -= size
        data = self._file.read(size)
        if len(data) != size:
            raise ModelError(f"{self._path} is truncated", _HINT)
        return data


def _dequantized(values: Array, scale: Array) -> Array:
    """Return int8 or int16 weights in float32. scale: one a row, or one for all; weights were multiplied.

    Raises ValueError for another number of scales.
    """
    if scale.size not in (1, *values.shape[:1]):
        raise ValueError(f"{scale.size} scales for weights of {values.shape}")
    by_row = scale.reshape(-1, *[1] * (values.ndim - 1)) if scale.size > 1 else scale
    return values.astype(np.float32) / by_row.astype(np.float32)


def _renamed(arrays: dict[str, Array]) -> dict[str, Array]:
    found = {
        "model.decoder.embed_tokens.weight": arrays["decoder/embeddings/weight"],
        "model.decoder.embed_positions.weight": arrays["decoder/position_encodings/encodings"],
        "model.encoder.embed_positions.weight": arrays["encoder/position_encodings/encodings"],
    }

    def norm(source: str, target: str) -> None:
        found[f"{target}.weight"] = arrays[f"{source}/gamma"]
        found[f"{target}.bias"] = arrays[f"{source}/beta"]

    def linear(source: str, *targets: str) -> None:
        weights = np.split(arrays[f"{source}/weight"], len(targets))
        biases = np.split(arrays[f"{source}/bias"], len(targets))
        for name, weight, bias in zip(targets, weights, biases, strict=True):
            found[f"{name}.weight"] = weight
            if not name.endswith("k_proj"):  # its bias is zero
                found[f"{name}.bias"] = bias

    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"model.encoder.{name}.{kind}"] = arrays[f"encoder/{name}/{kind}"]
    for side in ("encoder", "decoder"):
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(_layers(arrays, side)):
            source, target = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            own = [f"{target}.self_attn.{x}_proj" for x in ("q", "k", "v", "out")]
            norm(f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
            linear(f"{source}/self_attention/linear_0", *own[:3])
            linear(f"{source}/self_attention/linear_1", own[3])
            if side == "decoder":
                other = [f"{target}.encoder_attn.{x}_proj" for x in ("q", "k", "v", "out")]
                norm(f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")
                linear(f"{source}/attention/linear_0", other[0])
                linear(f"{source}/attention/linear_1", *other[1:3])
                linear(f"{source}/attention/linear_2", other[3])
            norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
            linear(f"{source}/ffn/linear_0", f"{target}.fc1")
            linear(f"{source}/ffn/linear_1", f"{target}.fc2")
    return found


def _layers(arrays: dict[str, Array], side: str) -> int:
    start = f"{side}/layer_"
    numbers = {name[len(start) :].split("/")[0] for name in arrays if name.startswith(start)}
    return sum(number.isdigit() for number in numbers)  # `layer_norm` begins like a layer


def _config(arrays: dict[str, Array], weights: dict[str, Array]) -> dict[str, Any]:
    vocab, width = weights["model.decoder.embed_tokens.weight"].shape
    sides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        heads = arrays.get(f"{side}/num_heads")
        sides |= {
            f"{side}_layers": _layers(arrays, side),
            f"{side}_attention_heads": width // 64 if heads is None else int(heads),
            f"{side}_ffn_dim": weights[f"model.{side}.layers.0.fc1.weight"].shape[0],
        }
    end = 50256 if vocab == 51864 else 50257  # .en models have one token less
    end = end if end < vocab else 0  # no real model; the tokenizer knows
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": width,
        **sides,
        "vocab_size": vocab,
        "num_mel_bins": weights["model.encoder.conv1.weight"].shape[1],
        "max_source_positions": weights["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": weights["model.decoder.embed_positions.weight"].shape[0],
        "activation_function": "gelu",
        "scale_embedding": False,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
    }


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    """Return CTranslate2's configuration in the names of transformers' generation_config.json."""
    names = {
        "alignment_heads": "alignment_heads",
        "suppress_ids": "suppress_tokens",
        "suppress_ids_begin": "begin_suppress_tokens",
    }
    return {name: config[key] for key, name in names.items() if isinstance(config.get(key), list)}
