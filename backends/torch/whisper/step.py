"""One forward pass of Whisper's decoder over slots, of fixed shape (`slots/step.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch.slots.attention import attention, forget_layouts
from specport.backends.torch.slots.step import StepShape, attended
from specport.backends.torch.whisper.cache import WhisperCache

if TYPE_CHECKING:
    from torch import Tensor


class WhisperStep(torch.nn.Module):  # type: ignore[misc]
    """Run the layers of a transformers `WhisperDecoder` on a `WhisperCache`.

    decoder, head: modules of the model; their weights are shared.
    """

    def __init__(self, decoder: Any, head: Any, cache: WhisperCache) -> None:
        super().__init__()
        self.decoder, self.head, self.cache = decoder, head, cache
        config = decoder.config
        self._heads, self._frames = config.decoder_attention_heads, config.max_source_positions
        self._last = config.max_target_positions - 1
        self._vocab_size = head.out_features

    def forward(self, packed: Tensor, shape: StepShape) -> tuple[Tensor, Mapping[int, Tensor]]:
        """Return logits [slots, kept, vocab] in float32; there are no hidden states."""
        parts = shape.unpack(packed)
        positions, lengths = parts["positions"], parts["lengths"]
        new = torch.arange(shape.new, device=packed.device)
        self.cache.at(shape.first, lengths[:, None] + new, shape.length)
        forget_layouts()
        seen, _ = attended(positions, lengths, parts["visible"], shape.length)
        dtype = self.cache.shape.dtype
        zero = torch.zeros((), dtype=dtype, device=packed.device)
        mask = torch.where(seen, zero, -torch.inf)[:, None]
        x = self.embedded(parts["ids"], positions)
        everything = self.cache.empty_mask(shape.slots, shape.new, self._frames, x)
        for i, layer in enumerate(self.decoder.layers):
            own = layer.self_attn
            h = layer.self_attn_layer_norm(x)
            key, value = self.cache.update(self._split(own.k_proj(h)), self._split(own.v_proj(h)), i)
            x = x + own.out_proj(self._attend(own, h, key, value, mask))
            h = layer.encoder_attn_layer_norm(x)
            other = layer.encoder_attn
            x = x + other.out_proj(self._attend(other, h, *self.cache.window(i), everything))
            x = x + inner(layer, x)
        if shape.kept:
            x = self.decoder.layer_norm(x).index_select(1, parts["kept"])
            logits = self.head(x).float()
        else:
            logits = torch.empty((shape.slots, 0, self._vocab_size), device=packed.device)
        forget_layouts()
        return logits, {}

    def embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return [slots, new, width] what the first layer reads."""
        # Padding may stand behind the last position.
        table = self.decoder.embed_positions.weight
        found: Tensor = self.decoder.embed_tokens(ids) + table[positions.clamp(max=self._last)]
        return found

    def _attend(self, module: Any, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        query = self._split(module.q_proj(x))
        return attention(module, query, key, value, mask)[0].flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """Return [slots, new, width] as [slots, heads, new, width / heads]."""
        return x.unflatten(2, (self._heads, -1)).transpose(1, 2)


def inner(layer: Any, x: Tensor) -> Tensor:
    """Return what a layer's two linear layers add."""
    found: Tensor = layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.final_layer_norm(x))))
    return found
