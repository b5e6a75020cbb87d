"""Find a model's own weights for multi-token prediction (MTP) in its Hugging Face folder, and take them out.

Such weights ship beside the ordinary ones, and transformers ignores them. They are a module that drafts: with
h_t the input of the target's language-model head at token t, and e the target's embedding,

    s_t = norm(layer(join [token.gain * rms(e(x_{t+1})), state.gain * rms(h_t)]))
    logits of x_{t+2} = head s_t

where the layer is a decoder layer of the target's own kind, which attends to the module's earlier tokens.
With s_t for h_t and a drafted token, the module drafts on. Three spellings are known: that of DeepSeek-V3
(arXiv 2412.19437) and GLM-4.5, that of Qwen3-Next and Qwen3.5, and that of MiMo (arXiv 2505.07608). As in
SGLang, h_t is taken behind the target's last norm, and s_t behind the module's. Of several modules, which are
meant to draft a token each, the first drafts them all.

Here the module becomes a folder: a decoder of one layer that transformers reads, and the file JOIN. The
decoder has a stand-in of VOCAB tokens for embeddings and head: those of the target are used. `specport
quantize mtp` trains such a folder for a target that has no module: an MTP head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models import tensors
from specport.models.atomic import write_json
from specport.models.json_file import CONFIG_FILE, text_config, whole
from specport.models.safe_files import UnsafeFile
from specport.models.tensors import Stored
from specport.outside import Format, plain_values
from specport.outside.numbers import Share

JOIN, WEIGHTS = "mtp.safetensors", "model.safetensors"
VOCAB = 8
_WEIGHT, _TOKEN, _STATE = "join", "token.gain", "state.gain"  # tensors of JOIN
_ANY = re.compile(r"(^|[._])(mtp|nextn)([._]|$)|\.mtp_|eh_proj")
_LAYER = re.compile(r"(?P<stem>(?:[\w]+\.)*?layers\.)(?P<number>\d+)\.(?P<rest>.+)")
# Kinds of models whose norms multiply by 1 + weight. The norms of their decoder layers do that by themselves.
_OFFSET = ("qwen3_next", "qwen3_5")
# The kind of decoder that one layer of a model of this kind makes; kinds that are not named make their own.
_DECODER = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "mimo": "qwen2"}
_SAMPLED, _SAMPLES = 1 << 14, 4  # bytes and places at which two tables are compared

_DAMAGED = "download the model again, or choose another --draft"


@dataclass(frozen=True)
class _Form:
    """Hold how a family spells the module: names below `stem`, and the prefix of its decoder layer."""

    stem: str
    layer: str
    join: str
    token: str
    state: str
    norm: str
    copies: Mapping[str, tuple[str, ...]]  # tables of the module's own -> the target's tables they must equal
    state_first: bool = False


_EMBEDDINGS = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")
_HEAD = ("lm_head.weight", *_EMBEDDINGS)  # tied heads are stored as the embeddings
_QWEN = _Form(
    "mtp.", "mtp.layers.0.", "fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm",
    {"mtp.embed_tokens.weight": _EMBEDDINGS},
)  # fmt: skip
_MIMO = _Form(
    "model.mtp_layers.0.", "model.mtp_layers.0.", "input_proj", "token_layernorm", "hidden_layernorm",
    "final_layernorm", {}, state_first=True,
)  # fmt: skip


def _deepseek(stem: str) -> _Form:
    copies = {f"{stem}embed_tokens.weight": _EMBEDDINGS, f"{stem}shared_head.head.weight": _HEAD}
    return _Form(stem, stem, "eh_proj", "enorm", "hnorm", "shared_head.norm", copies)


@dataclass(frozen=True)
class Module:
    """Hold where a model's module for multi-token prediction lies.

    folder: of the model. config: of its text part.
    like:   number of the target's layer that the module's layer is of the same form as.
    layer:  tensors of the layer by their names in it.
    """

    folder: Path
    config: Mapping[str, Any]
    like: int
    layer: Mapping[str, Stored]
    join: Stored
    token: Stored
    state: Stored
    norm: Stored
    state_first: bool


@dataclass(frozen=True)
class Join:
    """Hold what comes before the layer.

    weight:      [width, 2 * width] float16 or float32, for the token's embedding and then the state.
    token_gain, state_gain: [width] float32.
    epsilon:     of the RMS norms.
    """

    weight: NDArray[Any]
    token_gain: NDArray[np.float32]
    state_gain: NDArray[np.float32]
    epsilon: float

    @property
    def width(self) -> int:
        return len(self.token_gain)


def find(folder: Path) -> Module | None:
    """Return the module of the model in a Hugging Face folder; None where there is none.

    Reads headers only. Raises ModelError for a module of an unknown form, and for damaged files.
    """
    try:
        stored = tensors.in_folder(folder)
    except (OSError, UnsafeFile, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder} cannot be read: {error}", _DAMAGED) from error
    config = text_config(folder)
    count = whole(config, "num_hidden_layers")
    names = [name for name in stored if _ANY.search(name)]
    if not names or count is None:
        return None
    behind = re.compile(rf"(?P<stem>(?:\w+\.)*layers\.{count}\.)eh_proj\.weight")  # the model's last layer
    forms = [_QWEN, _MIMO, *(_deepseek(match["stem"]) for match in map(behind.fullmatch, names) if match)]
    form = next((form for form in forms if f"{form.stem}{form.join}.weight" in stored), None)
    if form is None:
        raise _unknown(folder, f"they have {names[0]}")
    parts = [
        stored.get(f"{form.stem}{name}.weight") for name in (form.join, form.token, form.state, form.norm)
    ]
    join, token, state, norm = (_known(folder, form, part) for part in parts)
    width = config.get("hidden_size")
    if join.shape != (width, 2 * join.shape[0]) or any(p.shape != (width,) for p in (token, state, norm)):
        raise _unknown(folder, f"they are not {width} wide")
    own = {f"{form.stem}{name}.weight" for name in (form.join, form.token, form.state, form.norm)}
    own |= {*form.copies}
    layer = {
        name.removeprefix(form.layer): tensor
        for name, tensor in stored.items()
        if name.startswith(form.layer) and name not in own and not name.endswith("rotary_emb.inv_freq")
    }
    for tensor in layer.values():
        _known(folder, form, tensor)
    like = _same_form(layer, stored, count)
    if like is None:
        raise _unknown(folder, "their layer is like none of the model's")
    for copy, originals in form.copies.items():
        if copy in stored and not any(o in stored and _equal(stored[copy], stored[o]) for o in originals):
            raise _unknown(folder, f"{copy} is not the model's")
    return Module(folder, config, like, layer, join, token, state, norm, form.state_first)


def _unknown(folder: Path, why: str) -> ModelError:
    message = f"{folder} has weights for multi-token prediction in a form that is not known: {why}"
    return ModelError(message, "choose another --draft")


def _known(folder: Path, form: _Form, part: Stored | None) -> Stored:
    if part is None:
        raise _unknown(folder, f"they have {form.stem}{form.join}, but not all that belongs to it")
    if part.kind not in tensors.FLOATS:
        raise _unknown(folder, f"they are stored as {part.kind}")
    return part


def _same_form(layer: Mapping[str, Stored], stored: Mapping[str, Stored], count: int) -> int | None:
    """Return the number of a layer of the model with tensors of the same names, shapes and types."""
    layers: dict[int, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, tensor in stored.items():
        match = _LAYER.fullmatch(name)
        if match and not _ANY.search(match["stem"]) and not name.endswith("rotary_emb.inv_freq"):
            layers.setdefault(int(match["number"]), {})[match["rest"]] = (tensor.kind, tensor.shape)
    wanted = {name: (tensor.kind, tensor.shape) for name, tensor in layer.items()}
    return next((number for number in sorted(layers) if number < count and layers[number] == wanted), None)


def _equal(one: Stored, other: Stored) -> bool:
    """Return whether two tables agree at some places."""
    if (one.kind, one.shape) != (other.kind, other.shape):
        return False
    size = min(_SAMPLED, one.size)
    starts = {(one.size - size) * i // max(1, _SAMPLES - 1) for i in range(_SAMPLES)}
    return all(one.read(start, size) == other.read(start, size) for start in starts)


def write(module: Module, folder: Path) -> None:
    """Write a module as a folder: a decoder of one layer, and JOIN."""
    width = module.join.shape[0]
    weight, gains = module.join.array(), [module.token.array(), module.state.array()]
    if module.state_first:
        weight = np.concatenate([weight[:, width:], weight[:, :width]], axis=1)
    if str(module.config.get("model_type")).startswith(_OFFSET):
        gains = [gain.astype(np.float32) + 1.0 for gain in gains]
    kept = np.float32 if module.join.kind == "F32" else np.float16
    token_gain, state_gain = (gain.astype(np.float32) for gain in gains)
    join = Join(weight.astype(kept), token_gain, state_gain, 0.0)
    write_parts(folder, module.config, module.like, module.layer, module.norm, join)


def write_parts(
    folder: Path,
    config: Mapping[str, Any],
    like: int,
    layer: Mapping[str, Stored | NDArray[Any]],
    norm: Stored | NDArray[Any],
    join: Join,
) -> None:
    """Write the folder of a module whose tensors are given.

    config: of the target's text part. like: number of the target's layer that `layer` is of the same form as.
    layer:  tensors by their names in it. norm: [width] behind the layer. The epsilon of `join` is that of
            `config`.
    """
    joined = {_WEIGHT: join.weight, _TOKEN: join.token_gain, _STATE: join.state_gain}
    stand_in = np.eye(VOCAB, join.width, dtype=np.float32)
    decoder: dict[str, Stored | NDArray[Any]] = {
        f"model.layers.0.{name}": part for name, part in layer.items()
    }
    decoder |= {"model.norm.weight": norm}
    decoder |= {"model.embed_tokens.weight": stand_in, "lm_head.weight": stand_in}
    tensors.write(folder / JOIN, joined)
    tensors.write(folder / WEIGHTS, decoder)
    write_json(folder / "config.json", _decoder_config(config, like, [*layer]), indent=2)


def _decoder_config(config: Mapping[str, Any], like: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a decoder with one layer of a model, whose tensors have these names."""
    config = dict(config)
    count = config["num_hidden_layers"]
    for name in [*config]:
        if isinstance(config[name], list) and len(config[name]) == count:  # one entry a layer
            config[name] = [config[name][like]]
    kind = str(config.get("model_type"))
    gone = [name for name in config if "mtp" in name]
    gone += ["text_config", "vision_config", "auto_map", "architectures", "transformers_version"]
    gone += ["bos_token_id", "eos_token_id", "pad_token_id", "mlp_only_layers", "num_nextn_predict_layers"]
    for name in gone:
        config.pop(name, None)
    config |= {"model_type": _DECODER.get(kind, kind), "num_hidden_layers": 1, "vocab_size": VOCAB}
    config |= {"tie_word_embeddings": False, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    if "full_attention_interval" in config:
        config |= {"full_attention_interval": 1, "layer_types": ["full_attention"]}
    experts = any(name.startswith("mlp.experts.") for name in names)
    for name in ("first_k_dense_replace", "max_window_layers"):
        if isinstance(config.get(name), int):
            config[name] = int(like < config[name])
    if "decoder_sparse_step" in config:
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": [] if experts else [0]}
    return config


class _Shape(Struct):
    hidden_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    rms_norm_eps: Share


_SHAPE = Format(_Shape, "a model's configuration", parse=plain_values.from_foreign_json)


def read_join(folder: Path) -> Join:
    """Return what comes before the layer, from a folder that `write` made (its decoder may be converted).

    Raises ModelError where it is missing, damaged or of another shape.
    """
    try:
        stored = tensors.header(folder / JOIN)
        weight, token, state = (stored[name].array() for name in (_WEIGHT, _TOKEN, _STATE))
        config = _SHAPE.read(folder / CONFIG_FILE)
        width, epsilon = config.hidden_size, config.rms_norm_eps
        shapes = weight.shape, token.shape, state.shape
        if shapes != ((width, 2 * width), (width,), (width,)):
            raise ValueError(f"it has the shapes {shapes}")
        if not all(np.isfinite(array).all() for array in (weight, token, state)):
            raise ValueError("not all its numbers are finite")
    except (OSError, UnsafeFile, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{folder / JOIN} cannot be read: {error}", "specport models rm removes it"
        ) from error
    return Join(weight, token.astype(np.float32), state.astype(np.float32), epsilon)
