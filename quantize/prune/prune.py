"""Removal of decoder layers, and of feed-forward channels, from a transformers model."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from specport.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = 64  # the kept channels are a multiple of it: INT4 weights are stored in such groups


def drop_layers(model: Any, dropped: Collection[int]) -> None:
    """Drop layers in place; renumber the others, in the configuration and for their caches.

    model: a decoder whose layers are `model.model.layers` (llama, qwen2, qwen3, gemma3 and most others).
    Raises ModelError for another kind of model, and for layers that do not exist.
    """
    import torch

    layers = decoder_layers(model)
    wrong = [number for number in dropped if not 0 <= number < len(layers)]
    if wrong or len(set(dropped)) >= len(layers):
        raise ModelError(f"layers {sorted(dropped)} cannot be dropped from a model of {len(layers)} layers")
    kept = [number for number in range(len(layers)) if number not in dropped]
    model.model.layers = torch.nn.ModuleList(layers[number] for number in kept)
    for index, layer in enumerate(model.model.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    config = model.config
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):  # full or sliding attention, layer by layer
        config.layer_types = [config.layer_types[number] for number in kept]


def decoder_layers(model: Any) -> Any:
    """Return the module list `model.model.layers`. Raises ModelError where there is none."""
    import torch

    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ModelError(f"no decoder layers were found in a {type(model).__name__}")
    return layers


def is_gated(layer: Any) -> bool:
    """Return whether a layer's feed-forward part has the projections gate, up and down."""
    part = getattr(layer, "mlp", None)
    return all(hasattr(part, name) for name in ("gate_proj", "up_proj", "down_proj"))


def feed_forward(layer: Any) -> Any:
    """Return a layer's feed-forward part. Raises ModelError where it has no gate, up and down projections."""
    if not is_gated(layer):
        raise ModelError(
            f"a {type(layer).__name__} has no gated feed-forward part", "build the draft without --mlp"
        )
    return layer.mlp


def num_channels(width: int, share: float) -> int:
    """Return the number of channels for this share of `width`: whole groups, at least one."""
    return min(width, max(CHANNELS, round(share * width / CHANNELS) * CHANNELS))


def keep_channels(part: Any, kept: Tensor) -> None:
    """Keep these channels of a feed-forward part, in place. kept: channel numbers, ascending."""
    import torch

    for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        linear = getattr(part, name)
        linear.weight = torch.nn.Parameter(linear.weight.detach().index_select(dim, kept))
        if dim == 0 and linear.bias is not None:
            linear.bias = torch.nn.Parameter(linear.bias.detach()[kept])
        linear.out_features, linear.in_features = linear.weight.shape
