"""Learn how long answers are, to weigh what pays off over the rest of a text."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from specport.core.planning.row_plan import RowPlan

_TOKENS_A_ROUND = 2.5
_PRIOR = (8, 16, 32, 64, 128, 256, 512)  # tokens of answers: a fact, a sentence, a paragraph, ...
_KEPT = 32  # number of latest answers that are remembered
_SIMILAR = 2.0  # factor within which the prompts of answers of the same kind are


class Lengths:
    """Learn how long answers are, to spread the cost of reading a context over what is still to come.

    Long prompts have answers of other lengths than short ones: a passage is asked for a fact, a greeting for
    a story. So an answer counts for prompts that are about as long as its own.
    """

    def __init__(self) -> None:
        self._known: deque[tuple[int, int]] = deque(maxlen=_KEPT)

    def learn(self, num_prompt_tokens: int, num_tokens: int) -> None:
        """Learn from an answer that has ended."""
        self._known.append((num_prompt_tokens, num_tokens))

    def pays(self, row: RowPlan, gain: float, reading: float) -> bool:
        """Return whether it pays to read a context now. Nothing to read pays where anything is gained.

        gain: seconds that each round saves from then on. reading: seconds to read it.

        Many an answer ends soon, and then the reading was in vain; one that has gone on for a while goes on
        for longer. So it must be worth more to read now than to wait until some more tokens are written.
        """
        if gain <= 0.0 or reading <= 0.0:
            return gain > 0.0
        left = np.sort(self._left(row))
        # Sum over all lengths that are still possible, if it is read before any more end, after the first
        # ends, and so on.
        behind = left - np.concatenate([[0.0], left[:-1]])[:, None]  # [starts, lengths] tokens drafted
        saved = np.maximum(behind, 0.0).sum(axis=1) * gain / _TOKENS_A_ROUND
        worth = saved - reading * (behind > 0.0).sum(axis=1)
        return bool(worth[0] > 0.0 and worth[0] >= worth.max())

    def _left(self, row: RowPlan) -> NDArray[np.float64]:
        """Return [lengths] tokens that may be left of a text."""
        prompt = row.state.num_prompt_tokens
        written = len(row.request.context) - prompt
        known = () if row.state.repeatable else self._known
        similar = [n for of, n in known if prompt <= _SIMILAR * of and of <= _SIMILAR * prompt]
        left = [n - written for n in (*_PRIOR, *similar) if n > written]
        # An answer that is longer than all others is expected to go on for as long again.
        return np.minimum(np.asarray(left or [max(1, written)], dtype=np.float64), row.request.num_left)
