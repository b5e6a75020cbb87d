"""Forecast the confidences of a costly drafter in a text, before it is asked. Knows probabilities only.

A drafter's confidences vary with the text. Their distribution by depth is learnt over all sequences (`Mix`)
and in each sequence (`Forecast`), which starts from the shared one. A deeper class of depths starts from the
one above it, so a text in which everything was accepted is expected to go on like that deeper, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specport.core.estimates.acceptance_rates import CENTRES, DEPTHS, EDGES, Local, depth_class
from specport.core.estimates.lookahead import Lookahead

# Mean acceptance per level, before anything was drafted. A measured mean below it is raised by as much as
# kinds of text differ: a draft that is poor on average pays in some of them, and a planner that expects the
# average gives up there after some unlucky rounds.
_REACH, _SPREAD = 0.7, 0.2
# Shape of the distribution of confidences: measured with a 0.5B draft of a 1.5B target, six kinds of prompts.
_SHAPE = (0.01, 0.03, 0.05, 0.05, 0.05, 0.06, 0.06, 0.06, 0.08, 0.08, 0.12, 0.35)
_PRIOR_WEIGHT, _SHARED_WEIGHT = 30.0, 4.0  # pseudo-counts of the prior, and of the shared mix in a text
_DECAY = 0.95  # of a text's counts for each draft
_PARTIAL = -1.2  # logits of acceptance, for a draft that will not read the whole context
# A drafter that does not seem to pay is probed when the probe takes this share of the time since the last.
_PROBE_SHARE = 0.02


class Mix:
    """Learn the distribution of a drafter's confidences by class of depth, over all sequences.

    reach: acceptance probability of its node at depth 1, 2, ... measured on other texts; () = unknown.
    """

    def __init__(self, reach: Sequence[float] = (), prior: Sequence[float] = CENTRES) -> None:
        means = _means(reach or (_REACH,))
        self._prior = np.stack([_tilted(mean, np.asarray(prior)) for mean in means])
        self._counts = np.zeros((len(DEPTHS), len(EDGES)))

    def learn(self, counts: NDArray[np.float64]) -> None:
        """Add a draft's counts [classes, bins]."""
        self._counts += counts

    @property
    def shares(self) -> NDArray[np.float64]:
        """Return [classes, bins] the share of each bin."""
        table: NDArray[np.float64] = self._counts + _PRIOR_WEIGHT * self._prior
        shares: NDArray[np.float64] = table / table.sum(1, keepdims=True)
        return shares


class Forecast:
    """Estimate a drafter's confidences in one text, and schedule probes while it seems poor."""

    def __init__(self, mix: Mix, local: Local) -> None:
        self._local = local
        self._mix = mix
        self._counts = np.zeros((len(DEPTHS), len(EDGES)))
        self._begun = False
        self._idle = 0  # rounds since the drafter was last asked
        self._pause = 1  # factor on the wait before the next probe

    def begin(self, *, whole: bool) -> None:
        """Start a round; the first one lowers the forecast of a drafter that reads a part of the context.

        whole: whether the drafter will have read the whole context.
        """
        if not self._begun and not whole:
            self._local.offset += _PARTIAL
        self._begun = True

    def lookahead(self) -> Lookahead:
        """Return the lookahead of the present estimate."""
        return Lookahead(self.shares(), self._local.table)

    def shares(self) -> NDArray[np.float64]:
        """Return [classes, bins] the expected share of each bin of confidence, by class of depth."""
        shared = self._mix.shares
        table = np.empty_like(shared)
        for i in range(len(DEPTHS)):
            prior = shared[i] if i == 0 else (shared[i] + table[i - 1]) / 2
            counts = self._counts[i] + _SHARED_WEIGHT * prior
            table[i] = counts / counts.sum()
        return table

    def learn(self, confidences: Sequence[float]) -> None:
        """Learn from the confidences along a drafted chain, depth 1 first."""
        counts = np.zeros_like(self._counts)
        for depth, confidence in enumerate(confidences, 1):
            counts[depth_class(depth), np.searchsorted(EDGES, confidence, side="right") - 1] += 1
        self._counts = _DECAY * self._counts + counts
        self._mix.learn(counts)

    def paid(self) -> None:
        """Reset the probe schedule: the drafter is asked because it seems to pay."""
        self._idle, self._pause = 0, 1

    def probes(self, cost: float, *, wanted: bool) -> bool:
        """Count a round without this drafter and return whether to probe it now.

        The wait doubles with each probe.

        cost:   of a short draft and its verification, in plain steps.
        wanted: False where another drafter's tree is chosen already.
        """
        self._idle += 1
        if not wanted or _PROBE_SHARE * self._idle < self._pause * cost:
            return False
        self._idle = 0
        self._pause *= 2
        return True


def _means(reach: Sequence[float]) -> list[float]:
    """Return the mean acceptance per level of each class of depth."""
    levels = np.asarray(reach) / np.maximum([1.0, *reach[:-1]], 1e-9)
    means: list[float] = []
    for low, high in zip(DEPTHS, (*DEPTHS[1:], len(levels) + 1), strict=True):
        own = levels[low - 1 : high - 1]
        means.append(_hopeful(float(own.mean())) if len(own) else means[-1])
    return means


def _hopeful(mean: float) -> float:
    """Return the acceptance to begin with, for a measured mean."""
    return min(1.0, max(mean, min(_REACH, mean + _SPREAD)))


def _tilted(mean: float, acceptance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [bins] shares of the usual shape, tilted so that the mean acceptance is `mean`."""
    low, high = -40.0, 40.0
    shape = np.asarray(_SHAPE)
    while high - low > 1e-3:
        tilt = (low + high) / 2
        shares = shape * np.exp(tilt * (acceptance - 0.5))
        shares /= shares.sum()
        low, high = (tilt, high) if shares @ acceptance < mean else (low, tilt)
    return shares
