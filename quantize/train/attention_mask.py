"""The attention mask of rows that are packed beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [texts, 1, T, T] that attention adds to its scores."""
    return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
