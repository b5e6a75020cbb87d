"""Graft's thresholds for a device and a pair of models: those with the most tokens a second.

How Graft's authors set them is not public. Here each checkpoint is decided by itself, by what was measured:
two recordings of the same prompts, one that never stops at the checkpoint and one that always does. A
threshold takes the rounds above it from the first and those below it from the second, and is as good as the
tokens that they commit over the seconds that they take by the models' cost tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specport.core.costs import StepCosts
from specport.drafters.graft import Checkpoint, DraftedRound

ALWAYS = 2.0  # a threshold that no probability reaches
MIN_ROUNDS = 20  # of each recording, for a threshold to be learnt


@dataclass(frozen=True)
class RoundCosts:
    """Seconds of a round by the levels that were drafted.

    width, budget: nodes that a level expands, and nodes that are verified.
    context: tokens in the caches, as they typically are.
    """

    target: StepCosts
    draft: StepCosts
    width: int
    budget: int
    context: int = 256

    def seconds(self, num_levels: int) -> float:
        """A level steps the paths down to its frontier: one token, then at most `width` more each time."""
        widths = [max(1, self.width * level) for level in range(num_levels)]
        drafting = sum(self.draft.step(width, self.context) for width in widths)
        return drafting + self.target.step(1 + self.budget, self.context)


def calibrate(
    checkpoints: Sequence[Checkpoint],
    going_on: Sequence[DraftedRound],
    stopping: Mapping[int, Sequence[DraftedRound]],
    costs: RoundCosts,
) -> tuple[Checkpoint, ...]:
    """The checkpoints with the thresholds that bring the most tokens a second.

    going_on: rounds drafted without checkpoints.
    stopping: level -> rounds drafted with that checkpoint only, its threshold ALWAYS.

    A checkpoint with fewer than MIN_ROUNDS rounds in either recording stays as it is.
    """
    found = []
    for checkpoint in checkpoints:
        full = _table(going_on, checkpoint.level, costs)
        pruned = _table(stopping.get(checkpoint.level, ()), checkpoint.level, costs)
        if min(len(full), len(pruned)) < MIN_ROUNDS:
            found.append(checkpoint)
        else:
            found.append(replace(checkpoint, threshold=best_threshold(full, pruned)))
    return tuple(found)


def best_threshold(full: NDArray[np.float64], pruned: NDArray[np.float64]) -> float:
    """The probability below which to stop; 0 = never, ALWAYS = each time. The lowest of equally good ones.

    full, pruned: [rounds, 3] the best path's probability at the checkpoint, tokens committed and seconds, of
    rounds that went on there and of rounds that stopped.
    """
    seen = np.concatenate([full[:, 0], pruned[:, 0]])
    candidates = np.unique(np.concatenate([[0.0, ALWAYS], seen]))
    rates = []
    for threshold in candidates:
        on, off = full[full[:, 0] >= threshold, 1:], pruned[pruned[:, 0] < threshold, 1:]
        share = float(np.mean(seen >= threshold))
        if (share > 0 and not len(on)) or (share < 1 and not len(off)):
            rates.append(0.0)  # nothing was recorded of what it would do there
            continue
        # [tokens, seconds] of a round; the recordings differ in how often they are sure.
        above = share * on.mean(axis=0) if share > 0 else np.zeros(2)
        below = (1.0 - share) * off.mean(axis=0) if share < 1 else np.zeros(2)
        tokens, seconds = above + below
        rates.append(float(tokens / seconds))
    return float(candidates[np.argmax(rates)])


def _table(rounds: Sequence[DraftedRound], level: int, costs: RoundCosts) -> NDArray[np.float64]:
    """[rounds, 3] as `best_threshold` takes them, of the rounds that came to the checkpoint."""
    rows = [
        (r.best[level - 1], 1.0 + r.accepted, costs.seconds(len(r.best)))
        for r in rounds
        if len(r.best) >= level
    ]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 3)
