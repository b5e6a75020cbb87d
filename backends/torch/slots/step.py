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
from specport.backends.torch.slots import alibi, linear
from specport.backends.torch.slots.attention import forget_layouts
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.halves import Part, decoder_of, split
from specport.backends.torch.slots.states import Keep

from specport.core.ports import HEAD_INPUT
from specport.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

SLIDING, CHUNKED, FULL = "sliding_attention", "chunked_attention", "full_attention"


@dataclass(frozen=True)
class StepShape:
    """Hold the sizes of a step. Steps of equal shape run as the same graph.

    first, slots: first slot and number of slots.
    new:    new tokens of each slot.
    length: rows of the cache that they attend to, the new ones included.
    kept:   tokens of each slot whose logits are computed; with 0 the head does not run.
    part:   layers that run.
    keep:   states that are kept, of a decoder that has them.
    """

    first: int
    slots: int
    new: int
    length: int
    kept: int
    part: Part = "whole"
    keep: Keep = "none"

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the sizes of the parts of the packed input, in order."""
        b, n = self.slots, self.new
        states = {"sources": (b, n), "targets": (b, n), "counts": (b,)}
        return {
            "ids": (b, n),
            "positions": (b, n),
            "lengths": (b,),
            "visible": (b, n, n),
            "kept": (self.kept,),
            **(states if self.keep != "none" else {}),
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
    """Run a transformers decoder on a `SlotCache`, which learns its shapes from a first step.

    hidden_layers: layers whose output is returned with the logits.
    exit_layer:    number of layers of the front; 0 = the decoder is not split.
    trees:         False for a decoder whose tokens can only follow one another.

    Raises ModelError where the decoder cannot run so, or cannot be split there.
    """

    def __init__(
        self, model: Any, cache: SlotCache, hidden_layers: tuple[int, ...] = (), exit_layer: int = 0
    ) -> None:
        super().__init__()
        self.cache = cache
        self.parts: dict[Part, Any] = {"whole": model}
        config = model.config.get_text_config(decoder=True)
        self._vocab_size = model.get_output_embeddings().out_features
        kinds = {*(getattr(config, "layer_types", None) or ())}
        self._kinds = kinds & {SLIDING, CHUNKED, FULL} if kinds & {SLIDING, CHUNKED} else set()
        # Any configuration may have the entry; only classes that declare it have sliding layers.
        slides = "sliding_window" in signature(type(config).__init__).parameters
        self._window = (slides and config.sliding_window) or 0
        self._chunk = getattr(config, "attention_chunk_size", None) or 0
        self._takes = _takes(model)
        self._caught: dict[int, Tensor] = {}
        self._where: Tensor | None = None  # [slots, length] positions of the rows that are attended to
        self.trees = alibi.install(decoder_of(model), lambda: self._where)
        linear.install(model, cache.states)
        self._note()
        if cache.shape.states and exit_layer:
            raise ModelError("no early exit: the model has layers with states", "choose another draft")
        self.parts = split(model, cache, exit_layer, hidden_layers)
        layers: Any = getattr(decoder_of(model), "layers", None)
        if hidden_layers and layers is None:
            raise ModelError(f"no hidden states: the layers of a {type(model).__name__} are not found")
        for layer in hidden_layers:
            # The decoder's own output is behind the last norm: what the head reads.
            source = decoder_of(model) if layer == HEAD_INPUT else layers[layer]
            source.register_forward_hook(self._catch(layer))

    def _note(self) -> None:
        """Run a step of two tokens, from which the cache learns its shapes."""
        shape = StepShape(0, 1, 2, 2, 2, keep="each")
        parts = {name: np.zeros(size, dtype=np.int64) for name, size in shape.sizes().items()}
        parts |= {"positions": np.arange(2, dtype=np.int64)[None], "visible": np.tri(2, dtype=np.int64)[None]}
        packed = shape.pack(**parts)
        try:
            with torch.inference_mode():
                self(torch.from_numpy(packed).to(self.cache.shape.device, torch.int64), shape)
        except ModelError:
            raise
        except Exception as error:  # any code of transformers may not be made for this cache
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise ModelError(
                f"its layers do not run on this cache: {type(error).__name__}: {reason}"
            ) from error
        if not self.cache.shape.layers:
            raise ModelError("no layer of it has keys and values")
        self.cache.noted()

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
        if shape.keep != "none":
            states = [parts[name] for name in ("sources", "targets", "counts")]
            self.cache.states.at(shape.keep, shape.first, *states)
        self._caught.clear()
        forget_layouts()
        model = self.parts[shape.part]
        inputs = {
            "input_ids": parts["ids"],
            "position_ids": positions,
            "attention_mask": self._masks(positions, lengths, parts["visible"], shape.length),
            "past_key_values": self.cache,
            "use_cache": True,
            "cache_position": new,
            "logits_to_keep": parts["kept"],
        }
        if shape.kept:
            logits = model(**{name: inputs[name] for name in self._takes}).logits.float()
            if "logits_to_keep" not in self._takes:
                logits = logits.index_select(1, parts["kept"])
        else:
            names = self._takes - {"logits_to_keep"}
            decoder_of(model)(**{name: inputs[name] for name in names})
            logits = torch.empty((shape.slots, 0, self._vocab_size), device=packed.device)
        forget_layouts()
        return logits, dict(self._caught)

    def _masks(self, positions: Tensor, lengths: Tensor, visible: Tensor, length: int) -> Any:
        """Return the additive attention mask [slots, 1, new, length]: 0 where a token attends to a row of its
        slot, else -inf.

        For models with several kinds of layers, return a dictionary by kind, as transformers expects it.
        """
        seen, where = attended(positions, lengths, visible, length)
        self._where = where
        masks = {FULL: seen}
        if self._window:
            masks[SLIDING] = seen & (where[:, None, :] > positions[:, :, None] - self._window)
        if self._chunk:
            chunks = where.div(self._chunk, rounding_mode="floor")
            own_chunk = positions.div(self._chunk, rounding_mode="floor")
            masks[CHUNKED] = seen & (chunks[:, None, :] == own_chunk[:, :, None])
        dtype = self.cache.shape.dtype
        zero = torch.zeros((), dtype=dtype, device=positions.device)
        added = {kind: torch.where(mask, zero, -torch.inf)[:, None] for kind, mask in masks.items()}
        if self._kinds:
            return {kind: added[kind] for kind in self._kinds}
        return added[SLIDING if self._window else FULL]


def attended(positions: Tensor, lengths: Tensor, visible: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return [slots, new, length] which rows each token attends to, and [slots, length] their positions."""
    slots, new = positions.shape
    rows = torch.arange(length, device=positions.device)
    node = rows - lengths[:, None]  # [slots, length] index of the new token in a row; below 0: committed
    at = node.clamp(0, new - 1)
    own = visible.bool().gather(2, at[:, None, :].expand(slots, new, length)) & (node < new)[:, None, :]
    seen = torch.where((node < 0)[:, None, :], True, own)
    return seen, torch.where(node < 0, rows, positions.gather(1, at))


def _takes(model: Any) -> set[str]:
    """Return which inputs of a step a decoder takes. Raises ModelError where it takes no cache."""
    names = {*signature(model.forward).parameters}
    needed = {"input_ids", "attention_mask", "past_key_values"}
    if not needed <= names:
        raise ModelError(f"it takes no {' and no '.join(sorted(needed - names))}")
    return (needed | {"position_ids", "use_cache", "cache_position", "logits_to_keep"}) & names
