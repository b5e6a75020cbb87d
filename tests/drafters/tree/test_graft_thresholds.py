"""Calibration of Graft's thresholds in a world whose best threshold is known."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.planning.step_costs import StepCosts
from specport.core.tree import TokenTree
from specport.drafters.tree.graft import Checkpoint, DraftedRound
from specport.drafters.tree.graft_thresholds import (
    ALWAYS,
    MIN_ROUNDS,
    NEVER,
    Choice,
    RoundCosts,
    choose,
    weigh,
)

TARGET = StepCosts((1, 2), (0,), ((1.0, 1.0),), measured=True)  # any width in a second


def draft(each: float) -> StepCosts:
    return StepCosts((1, 2), (0,), ((each, each),), measured=True)


def costs(each: float) -> RoundCosts:
    return RoundCosts(TARGET, draft(each), width=4)


def recorded(level: int, *, levels: int, gain: float, floor: float, rounds: int = 400) -> list[DraftedRound]:
    """Rounds whose acceptance rises with the probability at the checkpoint: floor + gain * probability."""
    rng = np.random.default_rng(levels)
    found = []
    for _ in range(rounds):
        sure = float(rng.random())
        best = tuple(max(sure, 0.01) for _ in range(levels))
        found.append(DraftedRound(best, int(rng.poisson(floor + gain * sure))))
    return found


FULL = recorded(1, levels=6, gain=4.0, floor=0.0)
PRUNED = recorded(1, levels=1, gain=0.0, floor=1.0)


def objective(threshold: float, each: float) -> float:
    """Tokens a second, in expectation: by integration over probabilities that are equally likely."""
    sure = np.linspace(0, 1, 2001)
    on = sure >= threshold
    tokens = np.where(on, 1 + 4.0 * sure, 2.0).mean()
    return float(tokens / np.where(on, 1 + 6 * each, 1 + each).mean())


@pytest.mark.parametrize("each", [0.01, 0.1, 0.3])
def test_the_threshold_brings_nearly_the_most_tokens_a_second(each: float) -> None:
    (choice,) = choose([Checkpoint(1, 0.5, 0.4)], FULL, {1: PRUNED}, costs(each))
    found = choice.checkpoint
    best = max(objective(t, each) for t in np.linspace(0, 1, 101))
    assert objective(found.threshold, each) > 0.98 * best
    assert found.level == 1 and found.share == 0.4
    assert choice.learnt and choice.num_rounds == len(FULL)
    # What it says of itself is what is expected, but for the noise of 400 rounds.
    assert choice.stopped == pytest.approx(found.threshold, abs=0.05)
    assert choice.tokens_per_second == pytest.approx(objective(found.threshold, each), rel=0.08)
    assert choice.never_tokens_per_second == pytest.approx(objective(0.0, each), rel=0.08)


def test_the_costlier_the_draft_the_higher_the_threshold() -> None:
    thresholds = [
        choose([Checkpoint(1, 0.5, 0.4)], FULL, {1: PRUNED}, costs(each))[0].checkpoint.threshold
        for each in (0.001, 0.1, 30.0)
    ]
    assert thresholds[0] < thresholds[1] < thresholds[2] == ALWAYS


def test_a_draft_that_always_pays_is_never_stopped() -> None:
    rounds = np.asarray([[0.2, 5.0, 1.0], [0.9, 6.0, 1.0]])
    stopped = np.asarray([[0.2, 1.0, 1.0], [0.9, 1.0, 1.0]])
    thresholds, rates = weigh(rounds, stopped)
    assert thresholds[0] == NEVER and thresholds[-1] == ALWAYS
    assert np.argmax(rates) == 0


def test_what_was_not_recorded_stays_as_it_is() -> None:
    before = (Checkpoint(1, 0.35, 0.1), Checkpoint(7, 0.2, 0.5))
    few = PRUNED[: MIN_ROUNDS - 1]
    # No round has seven levels, and of the first checkpoint there are too few.
    found = choose(before, FULL, {1: few, 7: PRUNED}, costs(0.1))
    assert found == (Choice(before[0], MIN_ROUNDS - 1), Choice(before[1], 0))
    assert not any(choice.learnt for choice in found)


def test_a_round_costs_its_levels_and_the_verification() -> None:
    table = StepCosts((1, 101), (0,), ((1.0, 2.0),), measured=True)
    tree = TokenTree((1,) * 20, (-1, 0, 1, *range(-1, 16)))
    # The root token, 4 nodes, 8 nodes; then 1 + 20.
    expected = 1.0 + 1.03 + 1.07 + 1.2
    assert RoundCosts(table, table, width=4).seconds(3, tree) == pytest.approx(expected)
    assert RoundCosts(table, table, width=1).seconds(3, tree) == pytest.approx(3 * 1.0 + 1.2)
    assert RoundCosts(table, table, width=4, forked=True).seconds(3, tree) > expected
    # A planner may verify nothing of what was drafted.
    assert RoundCosts(table, table, width=4).seconds(1, TokenTree()) == pytest.approx(2.0)
