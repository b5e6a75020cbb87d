"""Learn acceptance probabilities of drafted tokens while generating. Knows probabilities only.

A drafter gives each token a confidence (`TokenTree.confidence`): a draft model its probability, an n-gram
drafter a number that rises with the match length. How confidence translates into acceptance depends on
drafter, target and text. It is measured by bin of confidence and class of depth over all sequences
(`Acceptance`), and corrected for each sequence by one offset (`Local`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.core.tree import TokenTree

# Lower edges of the bins of confidence; finer where most tokens of a good drafter lie.
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
CENTRES = (*((a + b) / 2 for a, b in zip(EDGES, (*EDGES[1:], 1.0), strict=True)),)
DEPTHS = (1, 2, 4)  # lower edges of the classes of depth
_PRIOR_WEIGHT, _DEPTH_WEIGHT = 12.0, 24.0  # pseudo-counts of the prior, and of the mean over depths
# Factor on all counts for each verified tree. Older text fades, and so does a poor estimate of depths
# that are not drafted any more because of it: they are tried again.
_MEMORY = 0.999
_SHIFT_VARIANCE, _SHIFT_MAX, _NEWTON_STEPS = 1.0, 5.0, 3  # of the prior's shift in logits
_OFFSET_STEP, _OFFSET_MAX = 0.25, 2.0  # step size and bound of a sequence's offset, in logits


def depth_class(depth: int) -> int:
    """Return the class of a depth, 1 or more."""
    return bisect_right(DEPTHS, depth) - 1


class Acceptance:
    """Estimate the acceptance of one drafter's tokens over all sequences.

    prior: [bins] acceptance probability by bin of confidence (EDGES) before any observation.

    Raises ValueError for a prior of another length.
    """

    def __init__(self, prior: Sequence[float] = CENTRES) -> None:
        if len(prior) != len(EDGES):
            raise ValueError(f"{len(prior)} priors for {len(EDGES)} bins of confidence")
        self._prior = np.clip(np.asarray(prior, dtype=np.float64), 0.01, 0.99)
        self._trials = np.zeros((len(DEPTHS), len(EDGES)))
        self._hits = np.zeros((len(DEPTHS), len(EDGES)))
        self._probabilities = self._fit()

    def probability(self, confidence: float, depth: int) -> float:
        """Return the probability that a token is accepted, given that its parent is."""
        cell = depth_class(depth), bisect_right(EDGES, confidence) - 1
        return float(self._probabilities[cell])

    @property
    def table(self) -> NDArray[np.float64]:
        """Return [classes, bins] the probability by class of depth and bin of confidence."""
        return self._probabilities

    def observe(self, confidence: float, depth: int, accepted: bool) -> None:
        """Count a token whose parent was accepted; `refresh` makes it take effect."""
        cell = depth_class(depth), bisect_right(EDGES, confidence) - 1
        self._trials[cell] += 1
        self._hits[cell] += accepted

    def refresh(self) -> None:
        """Refit to the observations, at the end of a tree."""
        self._trials *= _MEMORY
        self._hits *= _MEMORY
        self._probabilities = self._fit()

    def _fit(self) -> NDArray[np.float64]:
        """Return [depths, bins]: each bin's mean shrunk to the shifted prior, each depth to that mean.

        The prior is shifted in logits first, by one number for all bins: few observations suffice to learn
        that a drafter is better or worse than expected.
        """
        trials, hits = self._trials.sum(0), self._hits.sum(0)
        logits, shift = np.log(self._prior / (1.0 - self._prior)), 0.0
        for _ in range(_NEWTON_STEPS):
            expected = 1.0 / (1.0 + np.exp(-logits - shift))
            slope = float((hits - trials * expected).sum()) - shift / _SHIFT_VARIANCE
            shift += slope / (float((trials * expected * (1.0 - expected)).sum()) + 1.0 / _SHIFT_VARIANCE)
            shift = min(max(shift, -_SHIFT_MAX), _SHIFT_MAX)
        prior = 1.0 / (1.0 + np.exp(-logits - shift))
        mean = (hits + _PRIOR_WEIGHT * prior) / (trials + _PRIOR_WEIGHT)
        table: NDArray[np.float64] = (self._hits + _DEPTH_WEIGHT * mean) / (self._trials + _DEPTH_WEIGHT)
        return table


@dataclass
class Local:
    """Estimate a drafter's acceptance in one sequence: the shared probabilities plus an offset in logits."""

    shared: Acceptance
    offset: float = 0.0

    @property
    def table(self) -> NDArray[np.float64]:
        """Return [classes, bins] the probability by class of depth and bin of confidence."""
        shared = self.shared.table
        odds = shared / (1.0 - shared) * math.exp(self.offset)
        table: NDArray[np.float64] = odds / (1.0 + odds)
        return table

    def probability(self, confidence: float, depth: int) -> float:
        """Return the probability that a token is accepted, given that its parent is."""
        shared = self.shared.probability(confidence, depth)
        if not self.offset:
            return shared
        odds = shared / (1.0 - shared) * math.exp(self.offset)
        return odds / (1.0 + odds)

    def path_probability(self, confidences: Sequence[float]) -> float:
        """Return the probability that a whole path is accepted.

        confidences: of its nodes, the root's child first.
        """
        return math.prod(self.probability(confidence, i) for i, confidence in enumerate(confidences, 1))

    def path_probabilities(self, tree: TokenTree) -> list[float]:
        """Return [n] the probability that each node and all its ancestors are accepted."""
        probabilities: list[float] = []
        depths = tree.depths()
        for node, parent in enumerate(tree.parents):
            above = probabilities[parent] if parent >= 0 else 1.0
            probabilities.append(above * self.probability(_confidence(tree, node), depths[node]))
        return probabilities

    def observe(self, tree: TokenTree, path: Sequence[int]) -> None:
        """Learn from a verified tree; only nodes whose parent was accepted were judged."""
        reached = {-1, *path}
        depths = tree.depths()
        for node, parent in enumerate(tree.parents):
            if parent not in reached:
                continue
            confidence, accepted = _confidence(tree, node), node in reached
            # One step of logistic regression on the offset alone.
            error = accepted - self.probability(confidence, depths[node])
            self.offset = min(max(self.offset + _OFFSET_STEP * error, -_OFFSET_MAX), _OFFSET_MAX)
            self.shared.observe(confidence, depths[node], accepted)
        self.shared.refresh()


def _confidence(tree: TokenTree, node: int) -> float:
    """Return a node's confidence; 0.5 where its drafter has none."""
    return tree.confidence[node] if tree.confidence else 0.5
