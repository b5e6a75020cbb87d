"""Temperatures that make the confidences of a parallel draft those with which its prefixes are accepted.

Deep in a draft a model knows less of its own context than it was trained to expect, and is too sure. Each
depth gets a temperature. They are fitted one after the other on the product of the confidences up to that
depth, which is what a planner multiplies (sequential temperature scaling, DSpark, arXiv 2607.05147).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

GRID = (*(round(2.0 ** (step / 4), 4) for step in range(-4, 9)),)  # from 0.5 to 4
_PER_NAT, _NATS = 64, 64  # bins of a nat below the largest logit, and the range of the bins
_LEAST = 20  # drafts below which a depth keeps the temperature of the depth before it

Floats = NDArray[np.float64]


def confidences(log_q: Tensor) -> Tensor:
    """Return [predictions, GRID] the probability of the likeliest token at each temperature.

    log_q: [predictions, columns] log-probabilities; overwritten.

    The columns are counted by their distance to the largest, so that they are not gone through for each
    temperature. Rounding to bins changes a probability by one percent of it at most.
    """
    rows, bins = len(log_q), _PER_NAT * _NATS
    best = log_q.amax(dim=-1, keepdim=True)
    steps = log_q.sub_(best).mul_(-_PER_NAT).add_(0.5).clamp_(max=bins).long()
    steps += (bins + 1) * torch.arange(rows, device=log_q.device)[:, None]
    counts = torch.bincount(steps.flatten(), minlength=rows * (bins + 1)).reshape(rows, bins + 1)
    nats = torch.arange(bins, device=log_q.device) / _PER_NAT
    weights = torch.stack([torch.exp(-nats / temperature) for temperature in GRID], dim=1)
    with torch.autocast(log_q.device.type, enabled=False):  # counts need all their digits
        return 1.0 / (counts[:, :bins].to(weights.dtype) @ weights)  # what is further away does not count


def fit(chances: Floats, accepted: NDArray[np.bool_]) -> tuple[float, ...]:
    """Return a temperature of GRID for each depth.

    chances:  [drafts, depths, GRID] the probability of each drafted token at each temperature; nan where a
              draft is not that deep.
    accepted: [drafts, depths] whether all tokens up to this one are the target's.

    The loss of a temperature is the cross-entropy of the prefix's acceptance.
    """
    found: list[float] = []
    product = np.ones(len(chances))
    for depth in range(chances.shape[1]):
        here = chances[:, depth]
        there = ~np.isnan(here[:, 0])
        choice = GRID.index(found[-1] if found else 1.0)
        if there.sum() >= _LEAST:
            chance = np.clip(product[there, None] * here[there], 1e-6, 1.0 - 1e-6)
            hit = accepted[there, depth, None]
            choice = int(np.argmin(-np.where(hit, np.log(chance), np.log1p(-chance)).mean(axis=0)))
        found.append(GRID[choice])
        product = product * np.where(there, here[:, choice], 0.0)
    return tuple(found)
