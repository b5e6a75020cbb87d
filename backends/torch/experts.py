"""Compute mixtures of experts alike for any split of the tokens, for exact mode, and without waits in graphs.

How many tokens an expert gets depends on what else is in the step, and matrix products round by their number
of rows. Packed weights do not from two rows on (`packed_linear.py`), so experts are packed. Routers and
experts in a form of their own are given one token at a time, which takes longer for prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch import packed_linear
from specport.backends.torch.packed_linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_ONE_BY_ONE = ("GptOssExperts", "DbrxExperts")  # of transformers 4


def install(model: Any, *, captured: bool) -> None:
    """Replace the `forward` of a model's experts.

    captured: for HPU graphs, which cannot wait for the number of tokens of an expert: each token multiplies
    copies of its experts' weights (transformers 5 only).
    """
    packs = not captured and packed_linear.available(model.dtype)
    for name, module in [*model.named_modules()]:
        kind = type(module).__name__
        common = hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")  # transformers 5
        if captured:
            if common:
                module.forward = _bound(_captured(), module)
        elif isinstance(module, PackedLinear):
            module.least = 2 if ".experts." in name else 1
        elif common and packs:
            module.forward = _bound(together, _Packed(module))
        elif kind.endswith("ParallelExperts") and packs:  # Granite, JetMoE
            module.forward = _bound(in_order, _pack(module, "weight", transposed=False))
        elif kind in _ONE_BY_ONE or "Router" in kind:
            module.forward = _one_by_one(module.forward, answers=kind in _ONE_BY_ONE)


def _captured() -> Callable[..., Tensor]:
    from transformers.integrations.moe import batched_mm_experts_forward

    found: Callable[..., Tensor] = batched_mm_experts_forward
    return found


def _bound(function: Callable[..., Tensor], *first: Any) -> Callable[..., Tensor]:
    def forward(*inputs: Any) -> Tensor:
        return function(*first, *inputs)

    return forward


def _one_by_one(inner: Callable[..., Any], *, answers: bool) -> Callable[..., Any]:
    """Return a `forward` that is called for each token; its other tensors have a row a token.

    answers: whether its result has the shape of its first input.
    """

    def forward(hidden_states: Tensor, *others: Any, **named: Any) -> Any:
        rows = hidden_states.reshape(-1, *(1,) * (hidden_states.ndim - 2), hidden_states.shape[-1])
        found = []
        for i in range(len(rows)):
            own = slice(i, i + 1)
            more = {name: _row(x, own) for name, x in named.items()}
            found.append(inner(rows[own], *(_row(x, own) for x in others), **more))
        if isinstance(found[0], torch.Tensor):
            joined = torch.cat(found)
            return joined.view_as(hidden_states) if answers else joined
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    return forward


def _row(x: Any, which: slice) -> Any:
    return x[which] if isinstance(x, torch.Tensor) and x.ndim > 1 else x


def _pack(module: Any, name: str, *, transposed: bool) -> list[PackedLinear]:
    """Return the experts of a weight [experts, out, in] as packed layers; the weight is freed."""
    weight, biases = getattr(module, name), getattr(module, f"{name}_bias", None)
    layers = []
    for i, own in enumerate(weight.data.transpose(1, 2) if transposed else weight.data):
        linear = torch.nn.Linear(own.shape[1], own.shape[0], bias=biases is not None, device="meta")
        linear.weight = torch.nn.Parameter(own.contiguous(), requires_grad=False)
        if biases is not None:
            linear.bias = torch.nn.Parameter(biases.data[i].contiguous(), requires_grad=False)
        layers.append(PackedLinear(linear, exact=True))
        layers[-1].least = 2
    setattr(module, name, None)
    return layers


class _Packed:
    """Hold the packed layers of experts of transformers 5, and what is computed between the two."""

    def __init__(self, module: Any) -> None:
        gated = hasattr(module, "gate_up_proj")
        self.between = module._apply_gate if gated else module.act_fn
        self.up = _pack(module, "gate_up_proj" if gated else "up_proj", transposed=module.is_transposed)
        self.down = _pack(module, "down_proj", transposed=module.is_transposed)


def together(packed: _Packed, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return the weighted sum [tokens, width] of what each token's experts answer.

    hidden_states: [tokens, width].
    top_k_index, top_k_weights: [tokens, experts of a token].
    """
    count = top_k_index.shape[1]
    chosen = top_k_index.reshape(-1)
    answers = hidden_states.new_zeros(len(chosen), hidden_states.shape[1])
    for expert in torch.unique(chosen).tolist():
        which = (chosen == expert).nonzero()[:, 0]
        inner = packed.between(packed.up[expert](hidden_states[which // count]))
        answers[which] = packed.down[expert](inner)
    weighted = answers.view(*top_k_index.shape, -1) * top_k_weights[..., None]
    return weighted.sum(dim=1).to(hidden_states.dtype)


def in_order(layers: Sequence[PackedLinear], inputs: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the product [rows, out] of each row with its expert's weight.

    inputs: [rows, in], ordered by expert.
    counts: number of rows of each expert.
    """
    parts = inputs.split(list(counts))
    return torch.cat([layer(rows) for layer, rows in zip(layers, parts, strict=True)])
