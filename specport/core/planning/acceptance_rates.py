"""How likely drafted tokens are to be accepted, learnt while generating. Knows probabilities only.

A drafter says of each token how sure it is (`TokenTree.confidence`: a draft model its probability, an
n-gram something that rises with the match). What that is worth differs by drafter, target and text, so
it is measured: acceptance by confidence and by depth for all sequences, and how far the sequence at
hand lies above or below that.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.core.tree import TokenTree

# Lower edges of the bins of confidence. Finer where most tokens of a good drafter lie.
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
CENTRES = (*((a + b) / 2 for a, b in zip(EDGES, (*EDGES[1:], 1.0), strict=True)),)
_DEPTHS = (1, 2, 4)  # lower edges of the classes of depth
_PRIOR_WEIGHT, _DEPTH_WEIGHT = 12.0, 24.0  # observations that outweigh the prior, and the mean over depths
_MEMORY = 2000.0  # observations of a cell that count at most: older text fades
_OFFSET_RATE, _OFFSET_MAX = 0.25, 2.0  # how fast a sequence's offset follows, and how far, in logits


class Acceptance:
    """Acceptance of one drafter's tokens over all sequences.

    prior: [bins] acceptance by bin of confidence (EDGES) before anything was observed.
    """

    def __init__(self, prior: Sequence[float] = CENTRES) -> None:
        if len(prior) != len(EDGES):
            raise ValueError(f"{len(prior)} priors for {len(EDGES)} bins of confidence")
        self._prior = np.clip(np.asarray(prior, dtype=np.float64), 0.01, 0.99)
        self._trials = np.zeros((len(_DEPTHS), len(EDGES)))
        self._hits = np.zeros((len(_DEPTHS), len(EDGES)))
        self._rates = self._fit()

    def rate(self, confidence: float, depth: int) -> float:
        """Chance that a token is accepted, given that its parent is."""
        return float(self._rates[bisect_right(_DEPTHS, depth) - 1, bisect_right(EDGES, confidence) - 1])

    def observe(self, confidence: float, depth: int, accepted: bool) -> None:
        cell = bisect_right(_DEPTHS, depth) - 1, bisect_right(EDGES, confidence) - 1
        if self._trials[cell] >= _MEMORY:
            self._trials[cell] *= 0.5
            self._hits[cell] *= 0.5
        self._trials[cell] += 1
        self._hits[cell] += accepted

    def refresh(self) -> None:
        """Let what was observed count. Apart from `observe`, so that a round pays for it once."""
        self._rates = self._fit()

    def _fit(self) -> NDArray[np.float64]:
        """[depths, bins]: the bin's mean over depths shrunk to the prior, each depth to that mean."""
        mean = (self._hits.sum(0) + _PRIOR_WEIGHT * self._prior) / (self._trials.sum(0) + _PRIOR_WEIGHT)
        rates: NDArray[np.float64] = (self._hits + _DEPTH_WEIGHT * mean) / (self._trials + _DEPTH_WEIGHT)
        return rates


@dataclass
class Local:
    """Acceptance of a drafter's tokens in one sequence: the shared rates and an offset in logits."""

    shared: Acceptance
    offset: float = 0.0

    def rate(self, confidence: float, depth: int) -> float:
        rate = self.shared.rate(confidence, depth)
        if not self.offset:
            return rate
        odds = rate / (1.0 - rate) * math.exp(self.offset)
        return odds / (1.0 + odds)

    def path(self, confidences: Sequence[float]) -> float:
        """Chance that a path is accepted whole; its nodes' confidences, the root's child first."""
        return math.prod(self.rate(confidence, i) for i, confidence in enumerate(confidences, 1))

    def chances(self, tree: TokenTree) -> list[float]:
        """[n] chance that each node and all its ancestors are accepted."""
        chances: list[float] = []
        depths = tree.depths()
        for node, parent in enumerate(tree.parents):
            above = chances[parent] if parent >= 0 else 1.0
            chances.append(above * self.rate(_confidence(tree, node), depths[node]))
        return chances

    def observe(self, tree: TokenTree, path: Sequence[int]) -> None:
        """Learn from a verified tree: nodes whose parent was accepted were judged, others were not."""
        reached = {-1, *path}
        depths = tree.depths()
        for node, parent in enumerate(tree.parents):
            if parent not in reached:
                continue
            confidence, accepted = _confidence(tree, node), node in reached
            # One step of logistic regression on the offset alone.
            error = accepted - self.rate(confidence, depths[node])
            self.offset = min(max(self.offset + _OFFSET_RATE * error, -_OFFSET_MAX), _OFFSET_MAX)
            self.shared.observe(confidence, depths[node], accepted)
        self.shared.refresh()


def _confidence(tree: TokenTree, node: int) -> float:
    """A node's confidence; half where its drafter has none."""
    return tree.confidence[node] if tree.confidence else 0.5
