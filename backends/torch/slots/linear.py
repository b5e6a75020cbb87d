"""Let a decoder's layers of linear attention and short convolution keep their states in a `StateStore`.

transformers' own layers can continue a text by one token only. Each is therefore run as if its tokens were a
whole text, without a cache, and the two functions in it that look back are replaced: the convolution and the
recurrence. No code of a layer is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from specport.backends.torch.slots.states import StateStore
    from torch import Tensor

_silu = torch.nn.functional.silu
_CACHE = ("cache_params", "past_key_values", "past_key_value", "cache_position", "attention_mask")


def install(model: Any, store: StateStore) -> None:
    """Replace these functions in a model that has such layers."""
    count = 0
    for module in [*model.modules()]:
        if hasattr(module, "_update_linear_attn_mask"):  # it waits for the device, and there is no padding
            module._update_linear_attn_mask = lambda *args, **kwargs: None
        if hasattr(module, "chunk_gated_delta_rule"):
            module.register_forward_pre_hook(_alone, with_kwargs=True)
            rule = _rule(store, count, module.chunk_gated_delta_rule)
            module.chunk_gated_delta_rule = module.recurrent_gated_delta_rule = rule
            count += 1
            if hasattr(module, "causal_conv1d_fn"):  # Qwen: one convolution, a function
                module.causal_conv1d_fn = _convolution(store, count)
                count += 1
            else:  # OLMo Hybrid: three, modules
                count = _replace(module, _Activated, store, count)
        elif type(module).__name__.endswith("ShortConv"):  # LFM2
            module.forward = _without_cache(module)
            count = _replace(module, _Bare, store, count)


def _replace(module: Any, kind: Any, store: StateStore, count: int) -> int:
    """Replace the convolutions in a layer; return the number of states so far."""
    for name, child in [*module.named_children()]:
        if isinstance(child, torch.nn.Conv1d):
            setattr(module, name, kind(child, store, count))
            count += 1
    return count


def _without_cache(module: Any) -> Any:
    def forward(hidden_states: Tensor, **cache: Any) -> Any:
        return module.slow_forward(hidden_states)

    return forward


def _alone(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Take the cache and the mask from a layer's arguments."""
    return args, {**kwargs, **{name: None for name in _CACHE if name in kwargs}}


def _rule(store: StateStore, which: int, chunked: Any) -> Any:
    def rule(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        found = store.recur_chunked(which, chunked, query, key, value, g, beta)
        if found is not None:
            return found, None
        # A sum's order depends on the layout, which is the convolution's: it changes with the tokens.
        query, key = (_normed(part.float().contiguous()) for part in (query, key))
        query = query * query.shape[-1] ** -0.5
        return store.recur(which, query, key, value, g, beta).to(value.dtype), None

    return rule


def _normed(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)


def _convolution(store: StateStore, which: int) -> Any:
    def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        return _silu(store.convolve(which, x, weight, bias))

    return convolution


class _Bare(torch.nn.Module):  # type: ignore[misc]
    """Stand for the convolution of LFM2's layers, [slots, channels, new] to the same."""

    def __init__(self, inner: Any, store: StateStore, which: int) -> None:
        super().__init__()
        self.weight, self.bias = inner.weight, inner.bias
        self._store, self._which = store, which

    def forward(self, x: Tensor) -> Tensor:
        return self._store.convolve(self._which, x, self.weight[:, 0], self.bias)


class _Activated(_Bare):
    """Stand for a convolution of OLMo Hybrid's layers, [slots, new, channels] to the same, activated."""

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, None]:
        return _silu(super().forward(x.transpose(1, 2))).transpose(1, 2), None
