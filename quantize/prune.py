"""Takes decoder layers out of a transformers model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from specport.errors import ModelError


def drop_layers(model: Any, dropped: Collection[int]) -> None:
    """In place. The layers that stay are renumbered, in the configuration and for their caches.

    model: a decoder whose layers are `model.model.layers` (llama, qwen2, qwen3, gemma3 and most others).
    Raises ModelError for another kind of model, and for layers that are not there.
    """
    import torch

    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ModelError(f"no decoder layers were found in a {type(model).__name__}")
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
