"""Seconds of a step by new tokens and by tokens in the cache. Knows numbers only.

A table gives the shape of the curve. It is measured (`specport calibrate`), or the profile's prior, which has
no unit until the first step is timed. Every timed step corrects the table by two factors: a global one for
the machine's drift, and a slower one for each width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MAX_WIDTH = 64  # widest step of one sequence
WIDEST = 1024  # most new tokens of a step, over all sequences, for which costs are kept
_DRIFT = 0.1  # learning rate of the global factor
# A width's factor is the mean over its observed steps, the table's entry counting as this many of them. Its
# learning rate has a lower bound, so that it follows the text's growing context.
_MEASURED_WEIGHT, _PRIOR_WEIGHT, _LEAST_RATE = 12.0, 3.0, 0.03
_PULL = 0.02  # how much of a width's surprise is put down to chance: it draws its factor to the table's entry
_TRIALS = 3  # timings before an assumed cost may rise: the first ones may be those of cold kernels
_SURPRISE = 0.5  # bound on one step's log ratio of observed to expected seconds


@dataclass
class StepCosts:
    """Estimate the seconds of a step of one model on one device.

    widths:   [w] new tokens of a step, strictly rising from 1.
    contexts: [c] tokens in the cache, strictly rising.
    seconds:  [c][w]. For a prior these are ratios to a step of one token.
    change:   extra time of a step whose width differs from the previous step's, as a share of a step of one
              token: the runtime prepares its kernels again.
    measured: whether the table was measured on this machine, so that its entries are seconds.

    Beyond the last width the table goes on with the slope of its last segment, in doubled widths up to
    WIDEST: steps of many sequences are wider than any that is measured, and are learnt from as they come.

    Raises ValueError for a table of another shape or with entries that are not positive.
    """

    widths: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    change: float = 0.0
    measured: bool = False
    known: bool = field(init=False, repr=False)  # in seconds, by measurement or by an observed step
    _drift: float = field(init=False, default=0.0, repr=False)  # log
    _widths: NDArray[np.int64] = field(init=False, repr=False, compare=False)  # [w], with those beyond
    _assumed: bool = field(init=False, default=False, repr=False)
    _trials: list[float] = field(init=False, default_factory=list, repr=False, compare=False)  # log
    _shape: NDArray[np.float64] = field(init=False, repr=False, compare=False)  # [w] log
    _seen: NDArray[np.float64] = field(init=False, repr=False, compare=False)  # [w] number of observed steps

    def __post_init__(self) -> None:
        self._table = np.asarray(self.seconds, dtype=np.float64).reshape(len(self.contexts), -1)
        rising = all(a < b for xs in (self.widths, self.contexts) for a, b in pairwise(xs))
        good = self._table.shape[1] == len(self.widths) and np.isfinite(self._table).all()
        if not rising or not good or self.widths[:1] != (1,) or not (self._table > 0).all():
            raise ValueError("a cost table needs rising widths from 1, rising contexts and positive seconds")
        self._widths = np.asarray(self.widths)
        while len(self.widths) > 1 and self._widths[-1] < WIDEST:
            slope = np.maximum(0.0, np.diff(self._table[:, -2:])[:, 0]) / (
                self._widths[-1] - self._widths[-2]
            )
            self._table = np.column_stack([self._table, self._table[:, -1] + slope * self._widths[-1]])
            self._widths = np.append(self._widths, 2 * self._widths[-1])
        self._shape = np.zeros(len(self._widths))
        self._seen = np.zeros(len(self._widths))
        self.known = self.measured

    @classmethod
    def prior(cls, cost: Mapping[int, float], change: float = 0.0) -> StepCosts:
        """Return the costs of a profile. cost: new tokens -> time relative to a step of one token."""
        return cls(tuple(cost), (0,), (tuple(cost.values()),), change)

    def fixed(self) -> StepCosts:
        """Return a copy without what was learnt from observed steps."""
        return replace(self)

    def assume(self, one: float) -> None:
        """Assume `one` seconds for a one-token step until steps are observed.

        The first timings can lower that, but not raise it, or one slow step would be the last one.
        """
        self._drift, self._assumed = math.log(one / self._table[0, 0]), True

    def curve(self, context: int, widest: int = MAX_WIDTH) -> NDArray[np.float64]:
        """Return [widest + 1] seconds of a step by its width, made monotone; entry 0 is 0."""
        curve = self._interpolated(np.arange(widest + 1), context)
        curve[0] = 0.0
        return np.maximum.accumulate(curve)

    def step(self, width: int, context: int) -> float:
        """Return the seconds of a step of `width` new tokens."""
        return float(self._interpolated(np.asarray([width]), context)[0])

    def change_seconds(self, context: int) -> float:
        """Return the extra seconds of a step whose width differs from the previous step's."""
        return self.change * self.step(1, context)

    def observe(self, width: int, context: int, seconds: float, *, changed: bool = False) -> None:
        """Learn from a timed step; steps wider than WIDEST are ignored.

        changed: whether the previous step had another width.
        """
        if not 1 <= width <= self._widths[-1] or seconds <= 0:
            return
        expected = self.step(width, context) + (self.change_seconds(context) if changed else 0.0)
        ratio = math.log(seconds / expected)
        if not self.known:
            self._trials.append(self._drift + ratio)
            if not self._assumed or ratio < 0.0 or len(self._trials) >= _TRIALS:
                self._drift, self.known = min(self._trials), True
            return
        surprise = min(max(ratio, -_SURPRISE), _SURPRISE)
        inside = width <= self.widths[-1]
        if inside:  # a guess beyond the table says nothing of the machine
            self._drift += _DRIFT * surprise
        place = float(np.interp(width, self._widths, np.arange(len(self._widths))))
        near = np.maximum(0.0, 1.0 - np.abs(np.arange(len(self._widths)) - place))  # the widths around it
        self._seen += near
        prior = _MEASURED_WEIGHT if self.measured and inside else _PRIOR_WEIGHT
        # Each learns by its share of what was expected: by distance alone, one that no longer matters
        # between two that do would fall on and on, and steps of its own width be expected to cost nothing.
        shares = near * self._row(context) * np.exp(self._shape)
        shares /= shares.sum()
        rates = np.maximum(_LEAST_RATE, 1.0 / (prior + self._seen))
        self._shape += rates * (shares * surprise - _PULL * near * self._shape)

    def _interpolated(self, at: NDArray[np.int64], context: int) -> NDArray[np.float64]:
        row = self._row(context) * np.exp(self._shape + self._drift)
        values: NDArray[np.float64] = np.interp(at, self._widths, row)
        if len(row) > 1:  # beyond WIDEST
            slope = (row[-1] - row[-2]) / (self._widths[-1] - self._widths[-2])
            values += slope * np.maximum(at - self._widths[-1], 0)
        return values

    def _row(self, context: int) -> NDArray[np.float64]:
        """Return [w] the table's row for a context, interpolated linearly and constant beyond the ends."""
        place = float(np.interp(context, self.contexts, np.arange(len(self.contexts))))
        low = int(place)
        high = min(low + 1, len(self.contexts) - 1)
        share = place - low
        row: NDArray[np.float64] = self._table[low] * (1.0 - share) + self._table[high] * share
        return row
