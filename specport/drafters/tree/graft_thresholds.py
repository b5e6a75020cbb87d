"""Choose Graft's thresholds for a device and a pair of models, to maximize tokens per second.

Graft's authors do not publish how they set thresholds. Here each checkpoint is decided separately from two
recordings of the same prompts: one never stops at the checkpoint, the other always does. A threshold takes
the rounds above it from the first recording and those below it from the second. Its value is their committed
tokens divided by their seconds by the models' cost tables.
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

NEVER, ALWAYS = 0.0, 2.0  # thresholds that every probability reaches, and that none reaches
MIN_ROUNDS = 20  # of each recording, for a threshold to be learnt


@dataclass(frozen=True)
class RoundCosts:
    """Compute the seconds of a round from its drafted levels and its verified tree.

    width:   number of nodes that a level expands; 1 = a chain.
    forked:  as `Capabilities.forked_trees` of the target.
    context: typical number of tokens in the caches.
    """

    target: StepCosts
    draft: StepCosts
    width: int
    forked: bool = False
    context: int = 256

    def seconds(self, num_levels: int, tree: TokenTree) -> float:
        """Return the seconds of drafting `num_levels` and verifying `tree`.

        Level 0 steps one token; level n steps the paths to its frontier, at most `width` * n tokens. The
        common prefix of all paths stays in the cache, so a chain steps one token per level.
        """
        widths = [1 if self.width == 1 else max(1, self.width * level) for level in range(num_levels)]
        verified = int(row_widths(tree, range(len(tree)), forked=self.forked)[-1]) if len(tree) else 1
        drafting = sum(self.draft.step(width, self.context) for width in widths)
        return drafting + self.target.step(verified, self.context)


@dataclass(frozen=True)
class Choice:
    """Hold a checkpoint with its chosen threshold and the evidence.

    num_rounds: recorded rounds that reached the checkpoint, in the recording with fewer of them. Below
                MIN_ROUNDS the checkpoint is unchanged, and the figures below are 0.
    stopped:    share of these rounds that the threshold stops.
    tokens_per_second: of the rounds that reached the checkpoint, estimated on the recordings that the
                threshold is chosen on.
    never_tokens_per_second: the same without the checkpoint.
    """

    checkpoint: Checkpoint
    num_rounds: int
    stopped: float = 0.0
    tokens_per_second: float = 0.0
    never_tokens_per_second: float = 0.0

    @property
    def learnt(self) -> bool:
        return self.num_rounds >= MIN_ROUNDS


def choose(
    checkpoints: Sequence[Checkpoint],
    going_on: Sequence[DraftedRound],
    stopping: Mapping[int, Sequence[DraftedRound]],
    costs: RoundCosts,
) -> tuple[Choice, ...]:
    """Return for each checkpoint the threshold with the most tokens per second.

    going_on: rounds drafted with thresholds of NEVER.
    stopping: level -> rounds drafted with ALWAYS at that checkpoint, else NEVER.
    """
    choices = []
    for checkpoint in checkpoints:
        full = _table(going_on, checkpoint.level, costs)
        pruned = _table(stopping.get(checkpoint.level, ()), checkpoint.level, costs)
        choice = Choice(checkpoint, min(len(full), len(pruned)))
        choices.append(_learnt(choice, full, pruned) if choice.learnt else choice)
    return tuple(choices)


def _learnt(choice: Choice, full: NDArray[np.float64], pruned: NDArray[np.float64]) -> Choice:
    candidates, speeds = weigh(full, pruned)
    best = int(np.argmax(speeds))  # the lowest of equally good ones
    threshold = float(candidates[best])
    return Choice(
        replace(choice.checkpoint, threshold=threshold),
        choice.num_rounds,
        stopped=float(np.mean(np.concatenate([full[:, 0], pruned[:, 0]]) < threshold)),
        tokens_per_second=float(speeds[best]),
        never_tokens_per_second=float(speeds[0]),
    )


def weigh(
    full: NDArray[np.float64], pruned: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return [n] candidate thresholds, NEVER first and ALWAYS last, and [n] their tokens per second.

    full, pruned: [rounds, 3] the best path's probability at the checkpoint, committed tokens and seconds, of
                  rounds that continued there and of rounds that stopped.
    """
    seen = np.concatenate([full[:, 0], pruned[:, 0]])
    candidates = np.unique(np.concatenate([[NEVER, ALWAYS], seen]))
    speeds = []
    for threshold in candidates:
        on, off = full[full[:, 0] >= threshold, 1:], pruned[pruned[:, 0] < threshold, 1:]
        share = float(np.mean(seen >= threshold))
        if (share > 0 and not len(on)) or (share < 1 and not len(off)):
            speeds.append(0.0)  # no recorded round shows the effect of this threshold
            continue
        # Mean [tokens, seconds] of a round; `share` is pooled, since the recordings differ in it.
        above = share * on.mean(axis=0) if share > 0 else np.zeros(2)
        below = (1.0 - share) * off.mean(axis=0) if share < 1 else np.zeros(2)
        tokens, seconds = above + below
        speeds.append(float(tokens / seconds))
    return candidates, np.asarray(speeds)


def _table(rounds: Sequence[DraftedRound], level: int, costs: RoundCosts) -> NDArray[np.float64]:
    """Return [rounds, 3] as in `weigh`, of the rounds that reached the checkpoint."""
    rows = [
        (r.best[level - 1], 1.0 + r.accepted, costs.seconds(len(r.best), r.tree))
        for r in rounds
        if len(r.best) >= level
    ]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 3)
