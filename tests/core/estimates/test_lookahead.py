"""The value of a draft by optimal stopping, against enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.estimates.acceptance_rates import DEPTHS, EDGES
from specport.core.estimates.lookahead import Lookahead

CLASSES, BINS = len(DEPTHS), len(EDGES)


def one_bin(acceptance: float) -> Lookahead:
    """All confidences are alike."""
    shares = np.zeros((CLASSES, BINS))
    shares[:, 5] = 1.0
    return Lookahead(shares, np.full((CLASSES, BINS), acceptance))


def curve(*seconds: float) -> np.ndarray:
    return np.asarray([[0.0, *seconds]])


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("each", [0.0, 0.1, 0.4])
def test_without_doubt_the_value_is_that_of_the_best_fixed_length(acceptance: float, each: float) -> None:
    steps = 1.0 + 0.08 * np.arange(12)
    value = one_bin(acceptance).value(curve(*steps), 0.9, each=each)
    tokens = 1.0 + np.cumsum(acceptance ** np.arange(1, 12))
    fixed = 0.9 * tokens - steps[1:] - each * np.arange(1, 12)
    assert value.whole == pytest.approx(float(fixed.max()), abs=0.02)


def test_a_token_that_does_not_pay_is_drafted_where_those_behind_it_do() -> None:
    """The third token is expensive to verify, and the fourth and fifth cost nothing more."""
    steps = (1.0, 1.0, 1.0, 1.9, 1.9, 1.9)
    value = one_bin(0.9).value(curve(*steps), 1.0)
    assert 0.81 * 0.9 < 0.9 < 0.9**3 + 0.9**4 + 0.9**5  # the added tokens, beside 0.9 added seconds
    assert value.least[2] <= 0.81
    assert value.whole == pytest.approx(sum(0.9**n for n in range(6)) - 1.9, abs=0.02)


def test_knowing_when_to_stop_is_worth_more_than_any_fixed_length() -> None:
    shares = np.zeros((CLASSES, BINS))
    shares[:, [0, -1]] = 0.5  # sure or lost
    acceptance = np.tile(np.linspace(0.02, 0.98, BINS), (CLASSES, 1))
    look = Lookahead(shares, acceptance)
    steps = 1.0 + 0.15 * np.arange(9)
    value = look.value(curve(*steps), 0.8, each=0.1)
    tokens = 1.0 + np.cumsum(0.5 ** np.arange(1, 9))
    fixed = 0.8 * tokens - steps[1:] - 0.1 * np.arange(1, 9)
    assert value.whole > float(fixed.max()) + 0.05
    assert 0.02 < value.least[1] <= 0.98  # goes on after a sure token only


def test_the_best_of_several_curves_is_chosen() -> None:
    steps = 1.0 + 0.08 * np.arange(6)
    curves = np.stack([np.concatenate([[0.0], steps + extra]) for extra in (0.2, 0.0, 0.1)])
    value = one_bin(0.8).value(curves, 1.0, each=0.1)
    assert value.choice == 1 and value.whole == one_bin(0.8).value(curves[1:2], 1.0, each=0.1).whole


def test_drafting_that_never_pays_is_worth_less_than_a_plain_step() -> None:
    steps = 1.0 + 0.3 * np.arange(6)
    value = one_bin(0.2).value(curve(*steps), 1.0, each=0.5)
    assert value.whole < 1.0 - steps[0]
    assert all(least > 1.0 for least in value.least[1:])
