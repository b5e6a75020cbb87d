"""Charge a step for changing the width, as runtimes do that prepare their kernels again for another shape.

A change costs time when it happens. Besides, a width from which the next step is likely to change again is
worth less than one that it is likely to keep. Where trees are drafted now and then, a running average of the
widths tells how likely. A drafter that drafts in every round has the choice to keep one width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DECAY = 0.9  # of the frequencies for each step
_ROUNDS = 8.0  # that a width is expected to be kept, once it is chosen
CHANGING = 0.4  # share of rounds that change the width where every draft has the length that suits it


class WidthChanges:
    """Follow the widths of an engine's steps.

    widest: maximum width; wider steps count as the widest.
    """

    def __init__(self, widest: int) -> None:
        self.last = 0  # width of the last step; 0 = none yet
        self._widest = widest
        self._frequencies = np.zeros(widest + 1)

    def observe(self, width: int) -> None:
        """Follow a step."""
        width = min(width, self._widest)
        self._frequencies *= _DECAY
        self._frequencies[width] += 1.0 - _DECAY
        self.last = width

    def charges(self, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what steps of these widths cost more for their changes, in changes."""
        if not self.last:
            return np.zeros(len(widths))
        widths = np.minimum(widths, self._widest)
        own = self._frequencies
        charges: NDArray[np.float64] = (widths != self.last) + float(own @ own) - own[widths]
        return charges

    def habits(self, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return [habits, widths] what steps of these widths cost more, in changes, by habit.

        A habit is to keep one width where a draft does not speak strongly against it: all other widths cost a
        change. The last habit is to keep none.
        """
        kept = np.unique(widths)
        charges = np.full((len(kept) + 1, len(widths)), CHANGING)
        charges[:-1] = widths != kept[:, None]
        charges[:-1] += (kept != self.last)[:, None] / _ROUNDS
        return charges
