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

from specport.core.planning.step_costs import StepCosts
from specport.core.planning.tree_pruning import row_widths
from specport.core.tree import TokenTree
from specport.drafters.tree.graft import Checkpoint, DraftedRound

NEVER, ALWAYS = 0.0, 2.0  # thresholds that each probability reaches, and that none does
MIN_ROUNDS = 20  # of each recording, for a threshold to be learnt


@dataclass(frozen=True)
class RoundCosts:
    """Seconds of a round by the levels that were drafted and the tree that was verified.

    width:   nodes that a level expands; 1 = a chain.
    forked:  the target steps each path of a tree as a chain of its own.
    context: tokens in the caches, as they typically are.
    """

    target: StepCosts
    draft: StepCosts
    width: int
    forked: bool = False
    context: int = 256

    def seconds(self, num_levels: int, tree: TokenTree) -> float:
        """A level steps the paths down to its frontier: one token, then at most `width` more each time.

        What all paths share stays in the cache, so a chain steps one token a level.
        """
        widths = [1 if self.width == 1 else max(1, self.width * level) for level in range(num_levels)]
        verified = int(row_widths(tree, range(len(tree)), forked=self.forked)[-1]) if len(tree) else 1
        drafting = sum(self.draft.step(width, self.context) for width in widths)
        return drafting + self.target.step(verified, self.context)


@dataclass(frozen=True)
class Choice:
    """A checkpoint with the threshold that was found for it, and what that rests on.

    num_rounds: recorded rounds that came to it, of the recording with fewer of them. Below MIN_ROUNDS the
                checkpoint is as it was before, and the figures below are 0.
    stopped:    share of the rounds that came to it which it ends.
    rate:       tokens a second of the rounds that came to it, by the recordings they are chosen on.
    never_rate: the same without the checkpoint.
    """

    checkpoint: Checkpoint
    num_rounds: int
    stopped: float = 0.0
    rate: float = 0.0
    never_rate: float = 0.0

    @property
    def learnt(self) -> bool:
        return self.num_rounds >= MIN_ROUNDS


def choose(
    checkpoints: Sequence[Checkpoint],
    going_on: Sequence[DraftedRound],
    stopping: Mapping[int, Sequence[DraftedRound]],
    costs: RoundCosts,
) -> tuple[Choice, ...]:
    """For each checkpoint the threshold that brings the most tokens a second.

    going_on: rounds drafted with thresholds of NEVER.
    stopping: level -> rounds drafted with ALWAYS at that checkpoint, else NEVER.
    """
    found = []
    for checkpoint in checkpoints:
        full = _table(going_on, checkpoint.level, costs)
        pruned = _table(stopping.get(checkpoint.level, ()), checkpoint.level, costs)
        choice = Choice(checkpoint, min(len(full), len(pruned)))
        found.append(_learnt(choice, full, pruned) if choice.learnt else choice)
    return tuple(found)


def _learnt(choice: Choice, full: NDArray[np.float64], pruned: NDArray[np.float64]) -> Choice:
    candidates, rates = weigh(full, pruned)
    best = int(np.argmax(rates))  # the lowest of equally good ones
    threshold = float(candidates[best])
    return Choice(
        replace(choice.checkpoint, threshold=threshold),
        choice.num_rounds,
        stopped=float(np.mean(np.concatenate([full[:, 0], pruned[:, 0]]) < threshold)),
        rate=float(rates[best]),
        never_rate=float(rates[0]),
    )


def weigh(
    full: NDArray[np.float64], pruned: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[n] thresholds that could make a difference, NEVER first and ALWAYS last, and their tokens a second.

    full, pruned: [rounds, 3] the best path's probability at the checkpoint, tokens committed and seconds, of
    rounds that went on there and of rounds that stopped.
    """
    seen = np.concatenate([full[:, 0], pruned[:, 0]])
    candidates = np.unique(np.concatenate([[NEVER, ALWAYS], seen]))
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
    return candidates, np.asarray(rates)


def _table(rounds: Sequence[DraftedRound], level: int, costs: RoundCosts) -> NDArray[np.float64]:
    """[rounds, 3] as `weigh` takes them, of the rounds that came to the checkpoint."""
    rows = [
        (r.best[level - 1], 1.0 + r.accepted, costs.seconds(len(r.best), r.tree))
        for r in rounds
        if len(r.best) >= level
    ]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 3)
