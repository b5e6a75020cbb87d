"""Losses over many predictions whose logits are not in memory at once, and the mask of packed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class InPieces(torch.autograd.Function):  # type: ignore[misc]
    """Sum of a loss over pieces of the head's inputs, whose gradient is worked out piece by piece.

    The logits of thousands of predictions over a large vocabulary, and what autograd keeps of them, would
    take gigabytes. The head is not trained, so the gradient of its inputs is all that has to be kept.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, by_piece: Callable[[Tensor], Any]) -> Tensor:
        inputs = outputs.detach().requires_grad_()
        total = torch.zeros((), device=outputs.device)
        with torch.enable_grad():
            for loss in by_piece(inputs):
                loss.backward()
                total += loss.detach()
        ctx.save_for_backward(inputs.grad if inputs.grad is not None else torch.zeros_like(outputs))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (saved,) = ctx.saved_tensors
        return gradient * saved, None


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [texts, 1, T, T] that attention adds to its scores."""
    return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
