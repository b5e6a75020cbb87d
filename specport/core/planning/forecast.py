"""Forecast the acceptance of a costly drafter in a text, before it is asked. Knows probabilities only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specport.core.planning.step_costs import MAX_WIDTH

_REACH = 0.7  # acceptance probability per level, before anything was drafted
_PARTIAL = 0.7  # factor per level for a draft that will not read the whole context
_LEAST = 1e-3  # lower bound: probabilities are divided by one another
_FOLLOW = 0.2  # weight of one draft in the exponential average
# A drafter that does not seem to pay is probed when the probe takes this share of the time since the last.
_PROBE_SHARE = 0.04


class Forecast:
    """Estimate a drafter's acceptance by depth in one text, and schedule probes while it seems poor.

    measured: acceptance probability of its node at depth 1, 2, ... on other texts; () = unknown.
    reach:    [MAX_WIDTH - 1] the same for this text.
    """

    def __init__(self, measured: Sequence[float] = ()) -> None:
        self.reach = _continued(measured or (_REACH,))
        self._begun = False
        self._idle = 0  # rounds since the drafter was last asked
        self._pause = 1  # factor on the wait before the next probe

    def begin(self, *, whole: bool) -> None:
        """Start a round; the first one lowers the forecast of a drafter that reads a part of the context.

        whole: whether the drafter will have read the whole context.
        """
        if not self._begun and not whole:
            self.reach *= _PARTIAL ** np.arange(1.0, MAX_WIDTH)
        self._begun = True

    def learn(self, probabilities: Sequence[float]) -> None:
        """Update the forecast with the probabilities along a drafted chain, depth 1 first."""
        self.reach += _FOLLOW * (_continued(probabilities) - self.reach)

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


def _continued(probabilities: Sequence[float]) -> NDArray[np.float64]:
    """Return [MAX_WIDTH - 1] probabilities by depth; beyond the known ones they fall by a constant factor."""
    known = np.maximum(probabilities[: MAX_WIDTH - 1], _LEAST)
    tail = known[-1] * _REACH ** np.arange(1.0, MAX_WIDTH - len(known))
    return np.concatenate([known, tail])
