"""Read a Whisper model with transformers: encoder, decoder on slots, and the weights of its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch import weights
from specport.backends.torch.whisper.cache import WhisperCache
from specport.backends.torch.whisper.step import WhisperStep, inner
from specport.quantize.convert import whole_model
from transformers import WhisperForConditionalGeneration

from specport.models.kinds.whisper import WhisperShape, read_shape
from specport.models.precision import TORCH_DTYPES

if TYPE_CHECKING:
    from torch import Tensor

    from specport.models.source import ModelFiles

_attend = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class WhisperParts:
    """Hold a model on a device. step: the decoder, with its cache."""

    shape: WhisperShape
    step: WhisperStep
    encoder: Any
    dtype: Any  # torch.dtype
    device: str

    @classmethod
    def read(
        cls,
        files: ModelFiles,
        device: str,
        head_tokens: tuple[int, ...] | None = None,
        *,
        exact: bool = False,
    ) -> WhisperParts:
        """Read a Hugging Face folder, the head cut to these ids (None = all).

        exact: the decoder rounds alike for any split of its tokens; the encoder reads each window whole.
        Raises ModelError, or DeviceError where the model does not fit.
        """
        shape = read_shape(files.folder)
        dtype = getattr(torch, TORCH_DTYPES[files.precision])
        model: Any = whole_model.read(
            WhisperForConditionalGeneration, files.folder, hint="check that it is a complete Whisper model",
            dtype=dtype, attn_implementation="sdpa",
        )  # fmt: skip
        if head_tokens is not None:
            weights.cut_head(model, head_tokens)
        model = model.eval().requires_grad_(False)
        weights.place(model.model.encoder, files.name, device)
        weights.place(model, files.name, device, exact=exact)
        cache = WhisperCache(shape, dtype, device)
        step = WhisperStep(model.model.decoder, model.proj_out, cache)
        return cls(shape, step, model.model.encoder, dtype, device)

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the states [frames, width] of features [mels, 2 frames]; one window at a time."""
        with torch.inference_mode():
            states = self.encoder(self._here(features)[None]).last_hidden_state[0]
        found: NDArray[np.float32] = states.float().cpu().numpy()
        return found

    def windows(self, states: NDArray[np.float32]) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values [heads, frames, width] of each layer for an encoder's output."""
        with torch.inference_mode():
            x, heads = self._here(states), self.shape.decoder_heads
            layers = [layer.encoder_attn for layer in self.step.decoder.layers]
            return [(_split(a.k_proj(x), heads), _split(a.v_proj(x), heads)) for a in layers]

    def attention(
        self, conditioning: NDArray[np.float32], tokens: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> NDArray[np.float32]:
        """Return [heads, tokens, frames] what tokens attend to, in these (layer, head) of cross-attention.

        The tokens are read at once, without a cache.
        """
        count, number = len(tokens), self.shape.decoder_heads
        found: dict[tuple[int, int], Tensor] = {}
        with torch.inference_mode():
            ids = torch.tensor([[*tokens]], device=self.device)
            x = self.step.embedded(ids, torch.arange(count, device=self.device)[None])[0]
            for i, (layer, (key, value)) in enumerate(
                zip(self.step.decoder.layers, self.windows(conditioning), strict=True)
            ):
                own, other = layer.self_attn, layer.encoder_attn
                h = layer.self_attn_layer_norm(x)
                q, k, v = (_split(project(h), number) for project in (own.q_proj, own.k_proj, own.v_proj))
                x = x + own.out_proj(_joined(_attend(q, k, v, is_causal=True)))
                query = _split(other.q_proj(layer.encoder_attn_layer_norm(x)), number)
                scores = (query.float() @ key.float().transpose(1, 2)) * query.shape[2] ** -0.5
                seen = scores.softmax(dim=2)
                found |= {(i, head): seen[head] for layer_, head in heads if layer_ == i}
                x = x + other.out_proj(_joined(seen.to(value.dtype) @ value))
                x = x + inner(layer, x)
        rows: NDArray[np.float32] = torch.stack([found[pair] for pair in heads]).cpu().numpy()
        return rows

    def _here(self, array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device, self.dtype)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)
