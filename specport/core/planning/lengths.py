"""Learn how long answers are, to weigh what pays off over the rest of a text."""

from __future__ import annotations

import statistics
from collections import deque

from specport.core.planning.row_plan import RowPlan

_TOKENS_A_ROUND = 2.5
_PRIOR = (16, 48, 96, 192, 384)  # tokens of typical answers: a fact, a sentence, a paragraph, ...
_KEPT = 16  # number of latest answers that are remembered


class Lengths:
    """Learn how long answers are, to spread the cost of reading a context over what is still to come."""

    def __init__(self) -> None:
        self._known: deque[int] = deque(maxlen=_KEPT)

    def learn(self, num_tokens: int) -> None:
        """Learn from an answer that has ended."""
        self._known.append(num_tokens)

    def rounds_to_come(self, row: RowPlan) -> float:
        """Return the expected number of remaining rounds of a text."""
        written = len(row.request.context) - row.state.num_prompt_tokens
        known = () if row.state.repeatable else self._known
        left = [n - written for n in (*_PRIOR, *known) if n > written]
        # An answer that is longer than all others is expected to go on for as long again.
        expected = statistics.fmean(min(n, row.request.num_left) for n in left or [written])
        return max(1.0, expected / _TOKENS_A_ROUND)
