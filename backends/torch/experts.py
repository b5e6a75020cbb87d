"""Compute mixtures of experts alike for any split of the tokens, for exact mode, and without waits in graphs.

How many tokens an expert gets depends on what else is in the step, and matrix products round by their number
of rows. Here an expert multiplies blocks of always the same number of rows, padded. It reads its weights once
for each block, so that long prompts take longer than with transformers' own form.

transformers 5 has one interface for the experts of most architectures. transformers 4 has linear layers,
which round alike from two rows on where they are packed. Other experts are left as they are, and exact mode
is what its check finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch.packed_linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_BLOCK = 16  # rows of a product
# Experts in a form of their own. Each token is given to them alone, which is slow where there are many.
_ONE_BY_ONE = ("GptOssExperts", "DbrxExperts")


def install(model: Any, *, captured: bool) -> None:
    """Replace the `forward` of a model's experts.

    captured: for HPU graphs, which cannot wait for the number of tokens of an expert: each token multiplies
    copies of its experts' weights.
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) and ".experts." in name:
            module.least = 2
        if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed"):
            module.forward = _bound(_captured() if captured else in_blocks, module)
        elif type(module).__name__.endswith("ParallelExperts") and not captured:  # Granite, JetMoE
            module.forward = _bound(parallel_in_blocks, module)
        elif type(module).__name__ in _ONE_BY_ONE and not captured:
            module.forward = _one_by_one(module.forward)
        elif "Router" in type(module).__name__ and not captured:
            module.forward = _routed(module.forward)


def _captured() -> Callable[..., Tensor]:
    from transformers.integrations.moe import batched_mm_experts_forward

    found: Callable[..., Tensor] = batched_mm_experts_forward
    return found


def _bound(function: Callable[..., Tensor], module: Any) -> Callable[..., Tensor]:
    def forward(*inputs: Any) -> Tensor:
        return function(module, *inputs)

    return forward


def _routed(router: Callable[..., Any]) -> Callable[..., Any]:
    """Return a router that is called with blocks of rows: some multiply with a weight of their own."""

    def forward(hidden_states: Tensor, *more: Any) -> Any:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        found = [router(block, *more) for block in _blocks(rows)]
        if isinstance(found[0], torch.Tensor):
            return torch.cat(found)[: len(rows)]
        return tuple(torch.cat(parts)[: len(rows)] for parts in zip(*found, strict=True))

    return forward


def _one_by_one(experts: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return experts that are called for each token. Their other arguments have a row a token."""

    def forward(hidden_states: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        rows = hidden_states.reshape(-1, 1, 1, hidden_states.shape[-1])
        found = []
        for i, row in enumerate(rows):
            own = slice(i, i + 1)
            found.append(
                experts(row, *(x[own] for x in others), **{name: x[own] for name, x in named.items()})
            )
        return torch.cat([part.reshape(1, -1) for part in found]).view_as(hidden_states)

    return forward


def in_blocks(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return the weighted sum [tokens, width] of what each token's experts answer.

    hidden_states: [tokens, width].
    top_k_index, top_k_weights: [tokens, experts of a token].
    """
    count = top_k_index.shape[1]
    chosen = top_k_index.reshape(-1)
    answers = hidden_states.new_zeros(len(chosen), hidden_states.shape[1])
    for expert in torch.unique(chosen).tolist():
        which = (chosen == expert).nonzero()[:, 0]
        blocks = _blocks(hidden_states[which // count])
        answers[which] = torch.cat([_answer(module, expert, block) for block in blocks])[: len(which)]
    weighted = answers.view(*top_k_index.shape, -1) * top_k_weights[..., None]
    return weighted.sum(dim=1).to(hidden_states.dtype)


def parallel_in_blocks(module: Any, inputs: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the product [rows, out] of each row with its expert's weight.

    inputs: [rows, in], ordered by expert.
    counts: number of rows of each expert.
    """
    parts = []
    for weight, rows in zip(module.weight, inputs.split(list(counts)), strict=True):
        products = [torch.nn.functional.linear(block, weight) for block in _blocks(rows)]
        parts += [torch.cat(products)[: len(rows)]] if products else []
    return torch.cat(parts)


def _blocks(rows: Tensor) -> Sequence[Tensor]:
    """Return rows in blocks of _BLOCK, the last one padded; none where there are no rows."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _BLOCK))
    return padded.split(_BLOCK) if len(rows) else ()


def _answer(module: Any, expert: int, rows: Tensor) -> Tensor:
    """Return one expert's answers to rows [_BLOCK, width]."""
    if module.has_gate:
        inner = module._apply_gate(_product(module, "gate_up_proj", expert, rows))
    else:
        inner = module.act_fn(_product(module, "up_proj", expert, rows))
    return _product(module, "down_proj", expert, inner)


def _product(module: Any, name: str, expert: int, rows: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return torch.nn.functional.linear(rows, weight.T if module.is_transposed else weight, bias)
