"""Where small modules on a target's states start: linear maps by ridge regression.

A module that begins by guessing the target's next state needs far less text than one of random weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

STRENGTH = 0.01  # share of the inputs' mean square that is added to it
LEAST_SHARE = 0.1
_LEAST_SIZE = 1e-2  # of a channel that is scaled to unit size


def linear_map(inputs: Tensor, wanted: Tensor, strength: float = STRENGTH) -> Tensor:
    """Return the weight [size, inputs] of the linear map that explains most of `wanted`.

    inputs: [n, inputs]. wanted: [n, size]. strength: of the ridge.
    """
    square = (inputs.T @ inputs).double()
    square += strength * square.diagonal().mean() * torch.eye(len(square), device=inputs.device)
    return torch.linalg.solve(square, (inputs.T @ wanted).double()).T.float()


def share_explained(found: Tensor, wanted: Tensor) -> float:
    """Return the factor of `found` that is nearest to `wanted`, LEAST_SHARE at least.

    A norm makes each state as large as the target's own. Where it is only partly right, so large a state is
    too sure of itself.
    """
    return max(float((found * wanted).mean() / found.square().mean().clamp(min=1e-12)), LEAST_SHARE)


def unit_gain(values: Tensor) -> Tensor:
    """Return [width] factors that bring each channel of these rows [n, width] to unit size."""
    return 1.0 / values.square().mean(dim=0).sqrt().clamp(min=_LEAST_SIZE)


def rms_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Return x / sqrt(mean(x^2) + epsilon), in float32."""
    return functional.rms_norm(x.float(), x.shape[-1:], eps=epsilon)
