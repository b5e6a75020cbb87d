"""Temperatures that make the confidences of a parallel draft those with which its prefixes are accepted.

Deep in a draft a model knows less of its own context than it was trained to expect, and is too sure. Each
depth gets a temperature. They are fitted one after the other on the product of the confidences up to that
depth, which is what a planner multiplies (sequential temperature scaling, DSpark, arXiv 2607.05147).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRID = (*(round(2.0 ** (step / 4), 4) for step in range(-4, 9)),)  # from 0.5 to 4
_LEAST = 20  # drafts below which a depth keeps the temperature of the depth before it

Floats = NDArray[np.float64]


def fit(confidences: Floats, accepted: NDArray[np.bool_]) -> tuple[float, ...]:
    """Return a temperature of GRID for each depth.

    confidences: [drafts, depths, GRID] the probability of each drafted token at each temperature; nan where a
                 draft is not that deep.
    accepted:    [drafts, depths] whether all tokens up to this one are the target's.

    The loss of a temperature is the cross-entropy of the prefix's acceptance.
    """
    found: list[float] = []
    product = np.ones(len(confidences))
    for depth in range(confidences.shape[1]):
        here = confidences[:, depth]
        there = ~np.isnan(here[:, 0])
        choice = GRID.index(found[-1] if found else 1.0)
        if there.sum() >= _LEAST:
            chance = np.clip(product[there, None] * here[there], 1e-6, 1.0 - 1e-6)
            hit = accepted[there, depth, None]
            choice = int(np.argmin(-np.where(hit, np.log(chance), np.log1p(-chance)).mean(axis=0)))
        found.append(GRID[choice])
        product = product * np.where(there, here[:, choice], 0.0)
    return tuple(found)
