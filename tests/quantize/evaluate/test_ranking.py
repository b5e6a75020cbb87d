"""Ranks of weight formats, from numbers that are easy to check."""

from __future__ import annotations

import pytest
from specport.quantize.evaluate.ranking import TOLERANCE, Candidate, Rank, rank, speed_up, speed_ups

BASE = Candidate(0.030, {1: 40.0, 2: 40.0, 4: 48.0, 8: 60.0, 16: 100.0})


def scaled(kl: float, factor: float) -> Candidate:
    return Candidate(kl, {width: ms * factor for width, ms in BASE.steps.items()})


def test_the_cheapest_that_keeps_the_quality_comes_first() -> None:
    ranks = rank([BASE, scaled(0.143, 0.75), scaled(0.032, 0.9), scaled(0.001, 1.2)], 0)
    assert [each.place for each in ranks] == [2, 4, 1, 3]
    assert [each.keeps_quality for each in ranks] == [True, False, True, True]
    assert [each.cost for each in ranks] == pytest.approx([1.0, 0.75, 0.9, 1.2])


def test_the_baseline_need_not_be_the_first() -> None:
    ranks = rank([scaled(0.143, 0.75), BASE], 1)
    assert ranks == [Rank(2, False, pytest.approx(0.75)), Rank(1, True, 1.0)]
    assert rank([scaled(0.143, 0.75), BASE], 0) == [Rank(1, True, 1.0), Rank(2, True, pytest.approx(4 / 3))]


def test_a_tenth_more_divergence_is_the_limit() -> None:
    limit = BASE.kl * (1 + TOLERANCE)
    assert [each.keeps_quality for each in rank([BASE, scaled(limit, 1), scaled(limit + 1e-6, 1)], 0)] == [
        True,
        True,
        False,
    ]


def test_the_cost_leaves_wide_steps_out() -> None:
    """Steps of 16 tokens are rare; each of the others counts alike."""
    other = Candidate(0.03, {1: 40.0, 2: 40.0, 4: 48.0, 8: 60.0 * 16, 16: 1.0})
    assert rank([BASE, other], 0)[1].cost == pytest.approx(2.0)


def test_the_best_length_of_a_draft() -> None:
    target = {1: 40.0, 2: 40.0, 4: 48.0, 8: 60.0}
    draft = {1: 8.0, 2: 9.0, 8: 12.0}
    found = speed_up([0.8, 0.6, 0.5, 0.1], draft, target)
    # 1: 1.8 / (9 + 40), 2: 2.4 / (17 + 44), 3: 2.9 / (25 + 48), 4: 3.0 / (33 + 51) tokens per ms
    assert found.length == 3 and found.factor == pytest.approx(40 * 2.9 / 73)
    assert speed_up([0.1], draft, target).factor == pytest.approx(40 * 1.1 / 49)
    assert speed_up([], draft, target).factor == 0.0
    assert speed_ups([0.8, 0.5], draft, target) == pytest.approx([40 * 1.8 / 49, 40 * 2.3 / (17 + 44)])
    # One pass: two tokens of the text and no MASK, or two and one.
    passes = speed_ups([0.8, 0.5], draft, target, parallel=True)
    assert passes == pytest.approx([40 * 1.8 / (9.0 + 40), 40 * 2.3 / (9.5 + 44)])
