"""What a costly drafter is expected to bring to a text, before it is asked. Knows chances only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specport.core.planning.step_costs import MAX_WIDTH

_REACH = 0.7  # chance a level, before anything was drafted
_PARTIAL = 0.7  # of it, for a draft that will not read the whole context
_LEAST = 1e-3  # never none: chances are divided by one another
_FOLLOW = 0.2  # how much one draft moves the forecast
# A drafter that does not seem to pay is tried all the same, where that takes this share of the time since.
_PROBE_SHARE = 0.04


class Forecast:
    """The chances of a drafter's nodes in one text, and when to try it although they are poor.

    measured: chance of its node at depth 1, 2, ... on other texts; () = nothing is known.
    reach:    [depth] the same for this text.
    """

    def __init__(self, measured: Sequence[float] = ()) -> None:
        self.reach = _continued(measured or (_REACH,))
        self._begun = False
        self._idle = 0  # rounds since it was asked
        self._pause = 1  # how much longer than usual these have to last before a probe

    def begin(self, *, whole: bool) -> None:
        """Called before each round. whole: whether the drafter will have read the whole context."""
        if not self._begun and not whole:
            self.reach *= _PARTIAL ** np.arange(1.0, MAX_WIDTH)
        self._begun = True

    def learn(self, chances: Sequence[float]) -> None:
        """From the chances along a drafted chain."""
        self.reach += _FOLLOW * (_continued(chances) - self.reach)

    def paid(self) -> None:
        """The drafter is asked since that seems to pay."""
        self._idle, self._pause = 0, 1

    def probes(self, cost: float, *, wanted: bool) -> bool:
        """Whether it is time to ask it although that does not seem to pay; each time it takes longer.

        cost: of a short draft and its verifying, in plain steps. wanted: False where another draft is there.
        """
        self._idle += 1
        if not wanted or _PROBE_SHARE * self._idle < self._pause * cost:
            return False
        self._idle = 0
        self._pause *= 2
        return True


def _continued(chances: Sequence[float]) -> NDArray[np.float64]:
    """[MAX_WIDTH - 1] chances at every depth: behind the last one that is known they go on falling."""
    known = np.maximum(chances[: MAX_WIDTH - 1], _LEAST)
    tail = known[-1] * _REACH ** np.arange(1.0, MAX_WIDTH - len(known))
    return np.concatenate([known, tail])
