"""Read the weights of a Whisper model in transformers' names, from safetensors or CTranslate2's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from specport.quantize.convert.whisper import ctranslate2

from specport.errors import ModelError
from specport.models import tensors
from specport.models.json_file import read_json
from specport.models.kinds.parallel import Parallel
from specport.models.kinds.whisper import (
    CTRANSLATE2_FILE,
    WhisperShape,
    find_head_tokens,
    find_parallel,
    shape_of,
)

Array = NDArray[Any]
_HINT = "check that it is a complete Whisper model"


@dataclass(frozen=True)
class WhisperSource:
    """Hold a model's weights and what its files say of it.

    generation: suppressed tokens, alignment heads and the like, as in transformers' generation_config.json.
    head_tokens: ids that the head of a draft is cut to when it is loaded; None = all.
    parallel: how a draft drafts several tokens in one pass; None = token by token.
    """

    weights: Mapping[str, Array]
    config: dict[str, Any]
    generation: dict[str, Any]
    shape: WhisperShape
    head_tokens: tuple[int, ...] | None = None
    parallel: Parallel | None = None


def read(folder: Path) -> WhisperSource:
    """Return the Whisper model in a folder. Raises ModelError for a damaged or incomplete one."""
    config_file = folder / "config.json"
    names = [*folder.glob("*.safetensors")]
    if not names and (folder / CTRANSLATE2_FILE).is_file():
        weights, config, generation = ctranslate2.read(folder)
        return WhisperSource(
            _checked(weights, shape := shape_of(config, folder), folder), config, generation, shape
        )
    config = read_json(config_file)
    shape = shape_of(config, config_file)
    try:
        stored = tensors.in_folder(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} cannot be read: {error}", _HINT) from error
    # Checkpoints of the bare model lack the prefix.
    known = {
        name if name.startswith(("model.", "proj_out")) else f"model.{name}": t for name, t in stored.items()
    }
    try:
        weights = {name: known[name].array() for name, _ in expected(shape) if name in known}
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be read: {error}", _HINT) from error
    return WhisperSource(
        _checked(weights, shape, folder),
        config,
        read_json(folder / "generation_config.json"),
        shape,
        find_head_tokens(folder, shape.vocab),
        find_parallel(folder, shape.vocab),
    )


def _checked(weights: Mapping[str, Array], shape: WhisperShape, folder: Path) -> Mapping[str, Array]:
    for name, size in expected(shape):
        if name not in weights:
            raise ModelError(f"{folder} has no weight {name}", _HINT)
        if weights[name].shape != size:
            raise ModelError(f"{folder}: {name} is {weights[name].shape}, not {size}", _HINT)
    return weights


def expected(shape: WhisperShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and sizes of all weights of a model."""
    width = shape.width

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)

    for size, name in ((shape.mel_bins, "conv1"), (width, "conv2")):
        yield f"model.encoder.{name}.weight", (width, size, 3)
        yield f"model.encoder.{name}.bias", (width,)
    yield "model.encoder.embed_positions.weight", (shape.frames, width)
    yield "model.decoder.embed_positions.weight", (shape.context, width)
    yield "model.decoder.embed_tokens.weight", (shape.vocab, width)
    for side, layers, inner in (
        ("encoder", shape.encoder_layers, shape.encoder_inner),
        ("decoder", shape.decoder_layers, shape.decoder_inner),
    ):
        yield from norm(f"model.{side}.layer_norm")
        for i in range(layers):
            layer = f"model.{side}.layers.{i}"
            for attention in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield f"{layer}.{attention}.{part}.weight", (width, width)
                    if part != "k_proj":
                        yield f"{layer}.{attention}.{part}.bias", (width,)
                yield from norm(f"{layer}.{attention}_layer_norm")
            yield from norm(f"{layer}.final_layer_norm")
            yield f"{layer}.fc1.weight", (inner, width)
            yield f"{layer}.fc1.bias", (inner,)
            yield f"{layer}.fc2.weight", (width, inner)
            yield f"{layer}.fc2.bias", (width,)
