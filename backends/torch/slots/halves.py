"""Cut decoders with fewer layers out of one, which share its weights. Knows transformers only.

Front and back are for early exit; a decoder without some layers is a slim verifier. They are the library's
own decoders with fewer layers. So the code before the first layer and behind the last one stays the
architecture's own: the front's head is the exit of LayerSkip (arXiv 2404.16710). The back also runs the code
before its layers, an embedding look-up, whose result is not used.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch.nn import ModuleList

from specport.errors import ModelError

if TYPE_CHECKING:
    from specport.backends.torch.slots.cache import SlotCache

# whole: all layers. front: those below the exit. back: the others, on the exit queries in the cache.
Part = Literal["whole", "front", "back"]


def split(model: Any, cache: SlotCache, exit_layer: int, hidden_layers: tuple[int, ...]) -> dict[Part, Any]:
    """Return the parts of a transformers decoder that exits after `exit_layer` layers; 0 = it is not split.

    The layers of a split model call `cache.hold` and `cache.held`: it must not be run whole any more.
    Raises ModelError where it cannot be split there.
    """
    if not exit_layer:
        return {"whole": model}
    decoder = decoder_of(model)
    if decoder not in [*model.children()]:
        raise ModelError(f"no early exit: {type(model).__name__} is no plain decoder with a head")
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ModelError(f"no early exit: the layers of a {type(model).__name__} are not found")
    if not 0 < exit_layer < len(layers):
        raise ModelError(
            f"no early exit after layer {exit_layer}: the model has {len(layers)} layers",
            f"choose an exit layer from 1 to {len(layers) - 1}",
        )
    if min(hidden_layers, default=exit_layer) < exit_layer:
        raise ModelError(
            f"with an early exit after layer {exit_layer}, steps return hidden states of layers from "
            f"{exit_layer} on only, not of {min(hidden_layers)}",
            "choose an earlier exit, or a draft that needs no hidden states",
        )
    layers[exit_layer - 1].register_forward_hook(
        lambda layer, inputs, output: cache.hold(output[0] if isinstance(output, tuple) else output)
    )
    layers[exit_layer].register_forward_pre_hook(lambda layer, inputs: (cache.held(), *inputs[1:]))
    every = range(len(layers))
    return {"front": _cut(model, every[:exit_layer]), "back": _cut(model, every[exit_layer:])}


def without(model: Any, skipped: Collection[int]) -> Any:
    """Return a transformers decoder without these layers; all weights are shared.

    Raises ModelError where that cannot be.
    """
    decoder = decoder_of(model)
    layers = getattr(decoder, "layers", None)
    if layers is None or decoder not in [*model.children()]:
        raise ModelError(f"no slim verifier: the layers of a {type(model).__name__} are not found")
    if wrong := [layer for layer in skipped if not 0 < layer < len(layers) - 1]:
        raise ModelError(
            f"no slim verifier without layer {wrong[0]}: the model has {len(layers)}, of which the first and "
            "the last stay"
        )
    return _cut(model, [layer for layer in range(len(layers)) if layer not in skipped])


def decoder_of(model: Any) -> Any:
    """Return the part of a transformers model below its head."""
    found = model.get_decoder()
    return model.base_model if found is model else found


def _cut(model: Any, which: Sequence[int]) -> Any:
    """Return a model with these layers of another; all weights are shared."""
    whole = decoder_of(model)
    decoder, cut = _shallow(whole), _shallow(model)
    decoder.layers = ModuleList([whole.layers[layer] for layer in which])
    if getattr(whole.config, "layer_types", None):  # some decoders look up a layer's kind by its index
        decoder.config = copy.copy(whole.config)
        decoder.config.layer_types = [whole.config.layer_types[layer] for layer in which]
    (name,) = (name for name, child in model.named_children() if child is whole)
    setattr(cut, name, decoder)
    return cut


def _shallow(module: Any) -> Any:
    """Return a module with the same parameters and children, whose children can be replaced."""
    new = copy.copy(module)
    new._modules = {**module._modules}
    return new
