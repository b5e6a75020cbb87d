"""Trains weights as they will be stored: rounded to INT4 in every step, with gradients as if they were not.

A draft that was trained in full precision loses two to twenty points of agreement when it is stored in INT4.
One that sees its own rounding does not (straight-through estimator, arXiv 1308.3432; LLM-QAT,
arXiv 2305.17888). The grid is NNCF's: from the smallest to the largest weight of a group, zero among them.
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
_SMALLEST = 32  # group that NNCF makes by itself


class _Rounded(torch.nn.Module):  # type: ignore[misc]
    """A weight [out, in] on the grid of its groups of `group` neighbours in a row."""

    def __init__(self, group: int, zero_points: bool) -> None:
        super().__init__()
        self._group, self._zero_points = group, zero_points

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            rounded = on_grid(weight, self._group, self._zero_points)
        return weight + (rounded - weight).detach()


def on_grid(weight: Tensor, group: int, zero_points: bool) -> Tensor:
    """The weight [out, in] as INT4 holds it, with or without zero points; in is a multiple of group."""
    rows = weight.detach().reshape(len(weight), -1, group)
    low, high = rows.amin(dim=-1, keepdim=True), rows.amax(dim=-1, keepdim=True)
    if zero_points:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = ((high - low) / _LEVELS).clamp(min=_LEAST)
        zero = (-low / scale).round().clamp(0, _LEVELS)
        codes = ((rows / scale).round() + zero).clamp(0, _LEVELS) - zero
    else:  # from -8 to 7; the side with the largest weight has the 8
        scale = torch.where(low.abs() >= high, low.abs(), -high) / 8
        scale = torch.where(scale.abs() < _LEAST, torch.full_like(scale, _LEAST), scale)
        codes = (rows / scale).round().clamp(-8, 7)
    return (codes * scale).reshape(weight.shape)


@contextmanager
def rounded(model: Any, precision: str) -> Iterator[None]:
    """Run the layers of `model` with weights rounded as `precision` stores them, while the context lasts.

    Only INT4 is coarse enough to matter: with other precisions nothing changes. Raises InvalidInput.
    """
    wanted = precisions.parse(precision)
    linears = [m for m in decoder_layers(model).modules() if isinstance(m, torch.nn.Linear)]
    stored: dict[Any, int] = {}
    if wanted.base == "int4" and wanted.ratio == 1.0:  # else NNCF says later which layers stay in INT8
        stored = {m: group for m in linears if (group := _group(m.in_features, wanted.group))}
    for layer, group in stored.items():
        parametrize.register_parametrization(layer, "weight", _Rounded(group, "asym" in wanted.options))
    try:
        yield
    finally:
        for layer in stored:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _group(width: int, wanted: int) -> int:
    """Weights of a row that share a scale where so many are wanted; 0 = NNCF leaves the row in INT8."""
    if wanted == precisions.CHANNEL:
        return width
    group = math.gcd(width, wanted)  # where it is smaller: the largest power of two, as `wanted` is one
    return group if group == wanted or group >= _SMALLEST else 0
