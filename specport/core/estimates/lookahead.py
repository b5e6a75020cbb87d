"""Value a costly draft before it is made: optimal stopping of a chain whose tokens cost time.

After each drafted token the draft may stop and be verified, or go on. Whether to go on depends on how likely
the path so far is accepted, and on all deeper levels: the next token alone may not pay where the two behind
it do. The confidences to come are unknown; their distribution by depth is (`Forecast`). This is a Markov
decision process over (depth, path probability), solved backwards on a grid of probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.core.estimates.acceptance_rates import depth_class

_GRID = np.concatenate([[0.0], np.geomspace(1 / 64, 1.0, 48)])  # path probabilities


@dataclass(frozen=True)
class Value:
    """Hold the value of a draft: seconds that it saves, less all that its round costs.

    whole: of the best way to draft and verify at least one token.
    least: [depth] smallest path probability at which one more token pays; entry 0 is 0.
    choice: index of the cost curve that the draft is worth most with.
    """

    whole: float
    least: tuple[float, ...]
    choice: int


class Lookahead:
    """Hold the transitions of path probabilities by class of depth.

    shares, acceptance: [classes, bins] share of each bin of confidence, and its acceptance probability.
    """

    def __init__(self, shares: NDArray[np.float64], acceptance: NDArray[np.float64]) -> None:
        reached = np.einsum("cb,cb->c", shares, acceptance)
        self._gain = reached[:, None] * _GRID  # [classes, grid] expected tokens of one more level
        self._moves = np.stack([_moves(s, a) for s, a in zip(shares, acceptance, strict=True)])

    def value(
        self,
        curves: NDArray[np.float64],
        worth: float,
        *,
        each: float = 0.0,
        before: NDArray[np.float64] | float = 0.0,
    ) -> Value:
        """Return the best value over several cost curves, and which of them has it.

        curves: [choices, width] seconds of the target's step. At most len(curves[0]) - 2 tokens are drafted.
        worth:  seconds that a token is worth.
        each:   seconds per drafted token. before: [choices] seconds before the first.
        """
        depth = curves.shape[1] - 2
        stop = -curves.T[:, None, :]  # [width, 1, choices]
        value = np.broadcast_to(stop[depth + 1], (len(_GRID), len(curves)))
        onward = np.empty((depth, len(_GRID), len(curves)))
        for d in range(depth - 1, -1, -1):
            level = depth_class(d + 1)
            onward[d] = self._moves[level] @ value
            onward[d] += (worth * self._gain[level] - each)[:, None]
            value = np.maximum(onward[d], stop[d + 1])
        whole = onward[0, -1] - before
        best = int(np.argmax(whole))
        pays = onward[:, :, best] > stop[1 : depth + 1, :, best]
        least = np.where(pays.any(1), _GRID[pays.argmax(1)], 2.0)
        least[0] = 0.0
        return Value(float(worth + whole[best]), tuple(least.tolist()), best)


def _moves(shares: NDArray[np.float64], acceptance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [grid, grid] the probability to move from one path probability to another by one level."""
    targets = _GRID[:, None] * acceptance  # [grid, bins]
    upper = np.clip(np.searchsorted(_GRID, targets), 1, len(_GRID) - 1)
    share = (targets - _GRID[upper - 1]) / (_GRID[upper] - _GRID[upper - 1])
    size = len(_GRID)
    flat = upper + size * np.arange(size)[:, None]
    moves: NDArray[np.float64] = np.zeros(size * size)
    moves += np.bincount(flat.ravel(), (share * shares).ravel(), size * size)
    moves += np.bincount(flat.ravel() - 1, ((1.0 - share) * shares).ravel(), size * size)
    return moves.reshape(size, size)
