"""Takes decoder layers, and channels of those that stay, out of a transformers model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from specport.errors import ModelError

CHANNELS = 64  # the number that stay is a multiple of it: INT4 weights are stored in such groups


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


def narrow(model: Any, share: float, texts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Keep this share of each feed-forward part's channels, in place; returns how many, and of how many.

    A channel counts by what it adds to the stream on these texts (token ids): its mean activation times the
    length of its column behind it (width pruning as in Minitron, Muralidharan et al., arXiv 2407.14679).
    Raises ModelError for a model whose feed-forward part is not gate, up and down.
    """
    import torch

    parts: list[Any] = [getattr(layer, "mlp", None) for layer in model.model.layers]
    if not all(hasattr(part, name) for part in parts for name in ("gate_proj", "up_proj", "down_proj")):
        raise ModelError(
            f"a {type(model).__name__} has no gated feed-forward part", "build the draft without --mlp"
        )
    width = parts[0].down_proj.in_features
    count = min(width, max(CHANNELS, round(share * width / CHANNELS) * CHANNELS))
    sums = [torch.zeros(width) for _ in parts]

    def look(total: Any, _: Any, inputs: tuple[Any, ...]) -> None:
        total += inputs[0].detach().abs().float().flatten(0, -2).sum(dim=0)

    hooks = [
        part.down_proj.register_forward_pre_hook(partial(look, total))
        for part, total in zip(parts, sums, strict=True)
    ]
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([list(text)]), logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    for part, total in zip(parts, sums, strict=True):
        worth = total * part.down_proj.weight.detach().float().norm(dim=0)
        kept = worth.topk(count).indices.sort().values
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            linear = getattr(part, name)
            linear.weight = torch.nn.Parameter(linear.weight.detach().index_select(dim, kept))
            if dim == 0 and linear.bias is not None:
                linear.bias = torch.nn.Parameter(linear.bias.detach()[kept])
            linear.out_features, linear.in_features = linear.weight.shape
    model.config.intermediate_size = count
    return count, width
