"""Pair models (PIPO, arXiv 2605.27255) as folders: what tells one, and the weights beside its decoder.

A pair model reads two tokens as one entry of the cache and writes up to two a step. It is lossy: its text is
not that of the model that it was trained from. A folder has

    config.json        `model_type` "pipo", and `PairConfig`
    pipo.safetensors   compressor, the vector of PAD, confidence head: `PairWeights`
    decoder/           a Hugging Face folder: decoder, tokenizer, and in the weights a module for multi-token
                       prediction as Qwen spells it (`models.kinds.mtp`), which writes the second token

so that all but the compressor is loaded as for other models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models import tensors
from specport.models.atomic import write_json
from specport.models.json_file import CONFIG_FILE, read_json
from specport.models.safe_files import UnsafeFile
from specport.outside import Format
from specport.outside.numbers import Share
from specport.outside.places import expanded

KIND, FORMAT = "pipo", 1
WEIGHTS, DECODER = "pipo.safetensors", "decoder"
THRESHOLD = 0.95  # of the confidence in a second token, as in the paper
EPSILON = 1e-6  # of the confidence head's norm
_HINT = "train it again with: specport quantize pipo"

Array = NDArray[np.float32]


class PairConfig(Struct):
    """Hold what config.json says of a pair model.

    width: of the decoder's states. vocab: rows of its embedding table.
    threshold: confidence from which a second token is kept, unless the user names another.
    source: name of the model that it was trained from.
    """

    width: Annotated[int, Meta(ge=1, le=1 << 16)]
    vocab: Annotated[int, Meta(ge=1, le=1 << 24)]
    threshold: Share = THRESHOLD
    source: Annotated[str, Meta(max_length=1000)] = ""


_CONFIG = Format(PairConfig, "the configuration of a pair model", _HINT, version=FORMAT)


@dataclass(frozen=True, eq=False)
class PairWeights:
    """Hold what a pair model has beside its decoder, float32. With width H, and e the decoder's embeddings:

        pair:       a = e(first), b = e(second), or `pad` where there is no second token
                    z = a + b + down silu(up [a; b])
        confidence: c = sigmoid(score silu(judge (gain * norm([state; second state]))))

    with norm(x) = x / sqrt(mean(x^2) + EPSILON), and the states that the head reads for either token.

    up: [H, 2H]. down: [H, H]. pad: [H]. gain: [2H]. judge: [H, 2H]. score: [1, H].
    """

    up: Array
    down: Array
    pad: Array
    gain: Array
    judge: Array
    score: Array

    @property
    def width(self) -> int:
        return len(self.pad)

    def confidence(self, state: Array, second: Array) -> float:
        """Return the confidence, 0 to 1, in a second token, from the states [H] of both tokens."""
        both = np.concatenate([state, second]).astype(np.float32)
        x = self.gain * both / np.sqrt(np.mean(both * both) + EPSILON)
        x = self.judge @ x
        with np.errstate(over="ignore"):
            x = x / (1.0 + np.exp(-x))
            return float(1.0 / (1.0 + np.exp(-(self.score @ x)[0])))


def is_pipo(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json says that its folder is a pair model."""
    return config.get("model_type") == KIND


def is_pair_folder(name: str | None) -> bool:
    """Return whether a user names the folder of a pair model. Raises ModelError for a damaged config.json."""
    if not name:
        return False
    path = expanded(name)
    return path.is_dir() and is_pipo(read_json(path / CONFIG_FILE))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Hold a pair model's configuration and weights, and how a pair is written as one id.

    The id of a pair is first * stride + second, where the second token may be `no_second`.
    """

    config: PairConfig
    weights: PairWeights

    @property
    def no_second(self) -> int:
        """Return what stands for PAD."""
        return self.config.vocab

    @property
    def stride(self) -> int:
        return self.config.vocab + 1

    def ids(self, tokens: Sequence[int], widths: Sequence[int] | None = None) -> list[int]:
        """Return the ids of the pairs of these tokens.

        widths: tokens of each pair, 2 or 1; None = 2, and an odd last one is paired with PAD.
        """
        found, at = [], 0
        for width in widths_of(len(tokens)) if widths is None else widths:
            second = tokens[at + 1] if width == 2 else self.no_second
            found.append(tokens[at] * self.stride + second)
            at += width
        return found


def widths_of(count: int) -> list[int]:
    """Return how many tokens each pair has of a prompt of `count` tokens."""
    return [2] * (count // 2) + [1] * (count % 2)


def read(folder: Path) -> Pairs:
    """Return what a folder holds beside the decoder. Raises ModelError where it cannot be used."""
    config = _CONFIG.read(folder / CONFIG_FILE)
    path, width = folder / WEIGHTS, config.width
    shapes = {
        "up": (width, 2 * width), "down": (width, width), "pad": (width,), "gain": (2 * width,),
        "judge": (width, 2 * width), "score": (1, width),
    }  # fmt: skip
    found: dict[str, Array] = {}
    try:
        stored = tensors.header(path)
        for name, shape in shapes.items():
            if stored[name].shape != shape or stored[name].kind not in tensors.FLOATS:
                raise ValueError(f"{name} is {stored[name].kind} of {stored[name].shape}, not {shape}")
            found[name] = np.asarray(stored[name].array(), np.float32)
            if not np.isfinite(found[name]).all():
                raise ValueError(f"not all numbers of {name} are finite")
    except KeyError as error:
        raise ModelError(f"{path} has no {error}", _HINT) from error
    except (OSError, UnsafeFile, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}", _HINT) from error
    return Pairs(config, PairWeights(**found))


def write(folder: Path, config: PairConfig, weights: PairWeights) -> None:
    """Write config.json and the weights beside the decoder into a folder."""
    arrays = {field.name: np.asarray(getattr(weights, field.name), np.float32) for field in fields(weights)}
    tensors.write(folder / WEIGHTS, arrays)
    facts = {name: getattr(config, name) for name in config.__struct_fields__}
    write_json(folder / CONFIG_FILE, {"model_type": KIND, "format": FORMAT, **facts}, indent=2)
