"""What the configuration of a Whisper model says, and which folders hold one. The files are untrusted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models import bundle, tensors
from specport.models.json_file import read_json
from specport.models.kinds.parallel import Parallel
from specport.outside import Format
from specport.outside.numbers import TokenId

KIND = "whisper"
HUGGING_FACE, CTRANSLATE2 = "Hugging Face", "CTranslate2"
CTRANSLATE2_FILE = "model.bin"
ENCODER_XML, CROSS_XML = "openvino_encoder.xml", "openvino_cross.xml"  # beside the decoder's graph
FACTS = "specport-whisper.json"  # written by conversions and builds: what config.json does not say
_ENCODER = "model.encoder."
_LARGEST = 1 << 17  # of any size in a configuration; real ones end at 51866
_MOST_LAYERS = 256  # and heads; real ones end at 32


@dataclass(frozen=True)
class WhisperShape:
    """Hold the sizes of a Whisper model.

    width:   of the states of encoder and decoder.
    frames:  of the encoder's output; the features have twice as many.
    context: most tokens of the decoder.
    """

    width: int
    mel_bins: int
    frames: int
    context: int
    vocab: int
    encoder_layers: int
    encoder_heads: int
    encoder_inner: int
    decoder_layers: int
    decoder_heads: int
    decoder_inner: int

    @property
    def head_width(self) -> int:
        """Return the width of a head of the decoder."""
        return self.width // self.decoder_heads


_NAMES = {
    "width": "d_model",
    "mel_bins": "num_mel_bins",
    "frames": "max_source_positions",
    "context": "max_target_positions",
    "vocab": "vocab_size",
    "encoder_layers": "encoder_layers",
    "encoder_heads": "encoder_attention_heads",
    "encoder_inner": "encoder_ffn_dim",
    "decoder_layers": "decoder_layers",
    "decoder_heads": "decoder_attention_heads",
    "decoder_inner": "decoder_ffn_dim",
}


def is_whisper(config: Mapping[str, Any]) -> bool:
    """Return whether a model's config.json says that it is a Whisper."""
    return config.get("model_type") == KIND


def speech_form(folder: Path) -> str | None:
    """Return the format of a Whisper model: HUGGING_FACE (our IR too), CTRANSLATE2, or None for others.

    Raises ModelError for a damaged config.json, and for files that cannot be read.
    """
    if is_whisper(read_json(folder / "config.json")):
        return HUGGING_FACE
    path = folder / CTRANSLATE2_FILE
    if not path.is_file() or any(folder.glob("*.safetensors")):
        return None
    try:
        with open(path, "rb") as file:  # version, length of the name, name
            return CTRANSLATE2 if file.read(64)[6:].startswith(b"WhisperSpec\0") else None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", "check its permissions") from error


def shape_of(config: dict[str, Any], where: Path) -> WhisperShape:
    """Return the sizes in a configuration. Raises ModelError for what is no Whisper that runs here."""
    sizes: dict[str, int] = {}
    for name, key in _NAMES.items():
        value = config.get(key)
        most = _MOST_LAYERS if name.endswith(("_layers", "_heads")) else _LARGEST
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise ModelError(f"{where}: {key} is {value!r}", "check that it is a complete Whisper model")
        sizes[name] = value
    shape = WhisperShape(**sizes)
    if shape.width % shape.encoder_heads or shape.width % shape.decoder_heads:
        raise ModelError(f"{where}: {shape.width} is no multiple of the number of heads")
    for key, plain in (("activation_function", "gelu"), ("scale_embedding", False)):
        if config.get(key, plain) != plain:
            raise ModelError(f"{where}: {key} is {config[key]!r}; only {plain!r} is supported")
    return shape


def read_shape(folder: Path) -> WhisperShape:
    """Return the sizes of the model in a folder. Raises ModelError."""
    path = folder / "config.json"
    return shape_of(read_json(path), path)


class _Facts(Struct):
    """What FACTS says. encoder: its `encoder_key`. head, parallel: as of `Bundle`."""

    encoder: str | None = None
    head: tuple[tuple[TokenId, TokenId], ...] | None = None
    parallel: Parallel | None = None


_FACTS = Format(_Facts, "what was noted of a speech model", "build or convert it again")


def noted(
    encoder: str, head_tokens: Sequence[int] | None = None, parallel: Parallel | None = None
) -> dict[str, Any]:
    """Return the content of FACTS.

    head_tokens: ascending ids that the head is cut to; None = all. parallel: as of `Bundle`.
    """
    found: dict[str, Any] = {"encoder": encoder}
    if head_tokens is not None:
        found["head"] = bundle.ranges(head_tokens)
    if parallel is not None:
        found["parallel"] = asdict(parallel)
    return found


def find_parallel(folder: Path, vocab: int) -> Parallel | None:
    """Return how a draft drafts several tokens in one pass; None = token by token. Raises ModelError."""
    known = _FACTS.read_if_there(folder / FACTS)
    if known is None or known.parallel is None:
        return None
    if known.parallel.mask_token_id != vocab - 1 or known.parallel.bigrams:
        raise ModelError(f"{folder / FACTS} does not fit a model of {vocab} ids", _FACTS.hint)
    return known.parallel


def find_head_tokens(folder: Path, vocab: int) -> tuple[int, ...] | None:
    """Return the ids that a draft's head is cut to when it is loaded; None = all. Raises ModelError."""
    known = _FACTS.read_if_there(folder / FACTS)
    if known is None or known.head is None:
        return None
    try:
        found = bundle.expand(known.head)
    except ValueError as error:
        raise ModelError(f"{folder / FACTS}: {error}", _FACTS.hint) from error
    if not found or found[-1] >= vocab:
        raise ModelError(f"{folder / FACTS} names ids that a model of {vocab} does not have", _FACTS.hint)
    return found


def encoder_key(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return a hash of the encoder's weights, by transformers' names. Equal ones mean one encoder.

    They are compared in half precision: a distilled model is often stored in another one than its teacher.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in weights if name.startswith(_ENCODER)):
        digest.update(name.encode())
        with np.errstate(over="ignore"):
            digest.update(np.ascontiguousarray(weights[name], dtype="<f2").tobytes())
    return digest.hexdigest()


def find_encoder_key(folder: Path) -> str:
    """Return `encoder_key` of a converted model, or of a Hugging Face folder. Raises ModelError."""
    known = _FACTS.read_if_there(folder / FACTS)
    if known is not None and known.encoder is not None:
        return known.encoder
    try:
        stored = tensors.in_folder(folder)
        return encoder_key({name: t.array() for name, t in stored.items() if name.startswith(_ENCODER)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} cannot be read: {error}", "check that it is a complete model") from error
