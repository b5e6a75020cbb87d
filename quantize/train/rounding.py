"""Quantization-aware training: forward passes round weights to INT4, gradients ignore it.

A draft that was trained in full precision loses two to twenty points of agreement when it is stored in INT4.
A draft that was trained with rounding does not (straight-through estimator, arXiv 1308.3432; LLM-QAT, arXiv
2305.17888). The grid is NNCF's: from the smallest to the largest weight of a group, with zero on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from specport.quantize.prune.prune import decoder_layers
from torch.nn.utils import parametrize

from specport.models import precision as precisions

if TYPE_CHECKING:
    from torch import Tensor

_LEVELS, _LEAST = 15, 1e-8  # steps of a 4-bit grid; the smallest scale
_BLOCK = 1 << 18  # weights that are rounded at a time
_SMALLEST = 32  # smallest group that NNCF chooses by itself


class _StraightThrough(torch.autograd.Function):  # type: ignore[misc]
    """Round a weight; the gradient passes as if it had not been rounded."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, group: int, zero_points: bool) -> Tensor:
        return on_grid(weight, group, zero_points)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class _Rounded(torch.nn.Module):  # type: ignore[misc]
    """Rounds a weight [out, in] to the grids of its groups of `group` neighbours in a row."""

    def __init__(self, group: int, zero_points: bool) -> None:
        super().__init__()
        self._group, self._zero_points = group, zero_points

    def forward(self, weight: Tensor) -> Tensor:
        found: Tensor = _StraightThrough.apply(weight, self._group, self._zero_points)
        return found


def on_grid(weight: Tensor, group: int, zero_points: bool) -> Tensor:
    """Return the weight [out, in] rounded as INT4 stores it; `in` must be a multiple of `group`.

    Some groups at a time, so that a processor's cache holds what the next operation reads.
    """
    rows = weight.detach().reshape(-1, group)
    found = torch.empty_like(rows)
    at_once = max(1, _BLOCK // group)
    for part, out in zip(rows.split(at_once), found.split(at_once), strict=True):
        low, high = torch.aminmax(part, dim=-1, keepdim=True)
        if zero_points:
            low, high = low.clamp(max=0.0), high.clamp(min=0.0)
            scale = ((high - low) / _LEVELS).clamp(min=_LEAST)
            zero = (-low / scale).round().clamp(0, _LEVELS)
            torch.div(part, scale, out=out).round_().add_(zero).clamp_(0, _LEVELS).sub_(zero)
        else:  # from -8 to 7; the sign of the largest weight gets the 8
            scale = torch.where(low.abs() >= high, low.abs(), -high) / 8
            scale = torch.where(scale.abs() < _LEAST, torch.full_like(scale, _LEAST), scale)
            torch.div(part, scale, out=out).round_().clamp_(-8, 7)
        out.mul_(scale)
    return found.reshape(weight.shape)


@contextmanager
def rounded(model: Any, precision: str) -> Iterator[None]:
    """Run the layers of `model` with weights rounded as `precision` stores them, while the context lasts.

    Changes nothing for precisions other than INT4, whose rounding is fine enough. Raises InvalidInput for an
    unknown precision.
    """
    wanted = precisions.parse(precision)
    linears = [m for m in decoder_layers(model).modules() if isinstance(m, torch.nn.Linear)]
    stored: dict[Any, int] = {}
    if wanted.base == "int4" and wanted.ratio == 1.0:  # with a smaller ratio NNCF chooses INT8 layers later
        stored = {m: group for m in linears if (group := group_size(m.in_features, wanted.group))}
    for layer, group in stored.items():
        parametrize.register_parametrization(layer, "weight", _Rounded(group, "asym" in wanted.options))
    try:
        yield
    finally:
        for layer in stored:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def group_size(width: int, wanted: int) -> int:
    """Return how many weights of a row share a scale, for the group that is wanted.

    0 = the row stays in INT8.
    """
    if wanted == precisions.CHANNEL:
        return width
    group = math.gcd(width, wanted)  # a power of two, as `wanted` is one
    return group if group == wanted or group >= _SMALLEST else 0
