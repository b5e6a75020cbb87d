"""Define the module that graphs are captured of: one forward pass of fixed shape over the slots' caches.

All inputs of a step are packed into one tensor of integers, so that a step needs one small copy to the
device. Nothing in the module waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.halves import Part, split

from specport.core.ports import HEAD_INPUT

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = "specport"
# On a CPU, torch computes the rows of a head in blocks of 32, each a matrix product. Products of fewer than
# 16 rows round differently, so such a block is padded. From 192 rows on torch uses other blocks, so at most
# 160 rows are passed at once.
_BLOCK, _FEWEST, _MOST = 32, 16, 160
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class StepShape:
    """Hold the sizes of a step. Steps of equal shape run as the same graph.

    first, slots: first slot and number of slots.
    new:    new tokens of each slot.
    length: rows of the cache that they attend to, the new ones included.
    kept:   tokens of each slot whose logits are computed; with 0 the head does not run.
    part:   layers that run.
    """

    first: int
    slots: int
    new: int
    length: int
    kept: int
    part: Part = "whole"

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the sizes of the parts of the packed input, in order."""
        b, n = self.slots, self.new
        return {
            "ids": (b, n),
            "positions": (b, n),
            "lengths": (b,),
            "visible": (b, n, n),
            "kept": (self.kept,),
        }

    def pack(self, **parts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the parts that `sizes` names as one array."""
        for name, size in self.sizes().items():
            assert parts[name].shape == size, (name, parts[name].shape, size)
        return np.concatenate([parts[name].ravel() for name in self.sizes()])

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """Return the parts as views of the packed input."""
        parts, start = {}, 0
        for name, size in self.sizes().items():
            count = math.prod(size)
            parts[name] = packed[start : start + count].view(size)
            start += count
        return parts


class StepModule(torch.nn.Module):  # type: ignore[misc]
    """Run a transformers decoder on a `SlotCache`.

    hidden_layers: layers whose output is returned with the logits.
    exit_layer:    number of layers of the front; 0 = the decoder is not split.

    Raises ModelError where the decoder cannot be split there.
    """

    def __init__(
        self, model: Any, cache: SlotCache, hidden_layers: tuple[int, ...] = (), exit_layer: int = 0
    ) -> None:
        super().__init__()
        self.cache = cache
        self.parts = split(model, cache, exit_layer, hidden_layers)
        config = model.config
        self._vocab_size = model.get_output_embeddings().out_features
        self._kinds = {*(getattr(config, "layer_types", None) or ())}
        # Any configuration may have the entry; only classes that declare it have sliding layers.
        slides = "sliding_window" in signature(type(config).__init__).parameters
        self._window = (slides and config.sliding_window) or 0
        self._groups = config.num_attention_heads // cache.shape.heads
        self._caught: dict[int, Tensor] = {}
        for layer in hidden_layers:
            decoder = model.get_decoder()  # its own output is behind the last norm: what the head reads
            source = decoder if layer == HEAD_INPUT else decoder.layers[layer]
            source.register_forward_hook(self._catch(layer))

    def _catch(self, layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            self._caught[layer] = output if isinstance(output, torch.Tensor) else output[0]

        return hook

    def forward(self, packed: Tensor, shape: StepShape) -> tuple[Tensor, Mapping[int, Tensor]]:
        """Return logits [slots, kept, vocab] in float32, and hidden states [slots, new, width] by layer."""
        parts = shape.unpack(packed)
        positions, lengths = parts["positions"], parts["lengths"]
        new = torch.arange(shape.new, device=packed.device)
        self.cache.at(shape.first, lengths[:, None] + new, shape.length)
        self._caught.clear()
        model = self.parts[shape.part]
        inputs = {
            "input_ids": parts["ids"],
            "position_ids": positions,
            "attention_mask": self._masks(positions, lengths, parts["visible"], shape.length),
            "past_key_values": self.cache,
            "use_cache": True,
            "cache_position": new,
        }
        if shape.kept:
            logits = model(**inputs, logits_to_keep=parts["kept"]).logits.float()
        else:
            model.get_decoder()(**inputs)
            logits = torch.empty((shape.slots, 0, self._vocab_size), device=packed.device)
        return logits, dict(self._caught)

    def _masks(self, positions: Tensor, lengths: Tensor, visible: Tensor, length: int) -> Any:
        """Return the additive attention mask: 0 where a token attends to a row of its slot, else -inf.

        For models with several kinds of layers, return a dictionary by kind, as transformers expects it.
        """
        slots, new = positions.shape
        rows = torch.arange(length, device=positions.device)
        node = rows - lengths[:, None]  # [slots, length] index of the new token in a row; below 0: committed
        at = node.clamp(0, new - 1)
        own = visible.bool().gather(2, at[:, None, :].expand(slots, new, length)) & (node < new)[:, None, :]
        seen = torch.where((node < 0)[:, None, :], True, own)
        masks = {FULL: seen}
        if self._window:
            where = torch.where(node < 0, rows, positions.gather(1, at))  # a row's position in the text
            masks[SLIDING] = seen & (where[:, None, :] > positions[:, :, None] - self._window)
        dtype = self.cache.shape.dtype
        zero = torch.zeros((), dtype=dtype, device=positions.device)
        added = {kind: self._laid_out(torch.where(mask, zero, -torch.inf)) for kind, mask in masks.items()}
        if self._kinds == {FULL}:
            return added[FULL]  # hybrids take no dictionary, and others need none
        if self._kinds:
            return {kind: added[kind] for kind in self._kinds}
        return added[SLIDING if self._window else FULL]

    def _laid_out(self, mask: Tensor) -> Tensor:
        """Return the mask [slots, new, length] as [slots, 1, rows, length], for `attention`, padded."""
        mask = mask.repeat(1, self._groups, 1)
        count = mask.shape[1]
        if mask.device.type == "cpu" and 0 < (missing := _FEWEST - count % _BLOCK) < _FEWEST:
            mask = torch.nn.functional.pad(mask, (0, 0, 0, missing))
        return mask[:, None]


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """Compute grouped-query attention without copies of keys and values: a group's queries become rows.

    query:          [slots, heads, new, width]
    key, value:     [slots, kv heads, length, width]
    attention_mask: [slots, 1, rows, length] from `StepModule`, with at least a row for each query of a group.
    """
    slots, heads, new, width = query.shape
    count = heads // key.shape[1] * new
    rows = query.reshape(slots, key.shape[1], count, width)
    if missing := attention_mask.shape[2] - count:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
    scale, most = options.get("scaling"), _MOST
    if count <= most or query.device.type != "cpu":
        out = _attend(rows, key, value, attention_mask, scale=scale)
    else:
        pieces = zip(rows.split(most, dim=2), attention_mask.split(most, dim=2), strict=True)
        out = torch.cat([_attend(part, key, value, seen, scale=scale) for part, seen in pieces], dim=2)
    if missing:
        out = out[:, :, :count]
    return out.reshape(slots, heads, new, value.shape[3]).transpose(1, 2), None


_attend = torch.nn.functional.scaled_dot_product_attention
