"""Low-rank updates of linear layers (LoRA, arXiv 2106.09685): added while training, then merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Updated(torch.nn.Module):  # type: ignore[misc]
    """A frozen linear layer plus alpha / rank * B A x. B is 0 at first."""

    def __init__(self, linear: Any, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.linear, self.scale, self.active = linear, alpha / rank, True
        self.a = torch.nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, rank))
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        if not self.active:
            return out
        update = torch.nn.functional.linear(torch.nn.functional.linear(self.dropout(x), self.a), self.b)
        return out + self.scale * update

    def merged(self) -> Any:
        """Return the linear layer with the update added to its weight, in place."""
        with torch.no_grad():
            self.linear.weight += self.scale * (self.b @ self.a)
        return self.linear


def add(layers: Any, rank: int, alpha: float, dropout: float) -> None:
    """Put updates around the linear layers of decoder layers, in place; all else in them is frozen."""
    layers.requires_grad_(False)
    for parent in [*layers.modules()]:
        for name in LAYERS:
            linear = getattr(parent, name, None)
            if isinstance(linear, torch.nn.Linear):
                setattr(parent, name, Updated(linear, rank, alpha, dropout))


def merge(layers: Any) -> None:
    """Replace all updates by linear layers that they are added to, in place."""
    for parent in [*layers.modules()]:
        for name in LAYERS:
            updated = getattr(parent, name, None)
            if isinstance(updated, Updated):
                setattr(parent, name, updated.merged())


@contextmanager
def without(layers: Any) -> Iterator[None]:
    """Run decoder layers as they were before training."""
    found = [module for module in layers.modules() if isinstance(module, Updated)]
    for module in found:
        module.active = False
    try:
        yield
    finally:
        for module in found:
            module.active = True
