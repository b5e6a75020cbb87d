"""Step costs: interpolation, correction by observed steps, and the isotonic fit of measured ones."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.planning.step_costs import MAX_WIDTH, StepCosts

TABLE = StepCosts((1, 2, 4, 8), (0, 100), ((1.0, 1.2, 1.6, 2.4), (2.0, 2.4, 3.2, 4.8)), 0.5, measured=True)


def test_between_what_was_measured_costs_are_interpolated() -> None:
    curve = TABLE.fixed().curve(0)
    assert curve[[1, 2, 3, 4, 6, 8]] == pytest.approx([1.0, 1.2, 1.4, 1.6, 2.0, 2.4])
    assert TABLE.fixed().curve(50)[4] == pytest.approx(2.4)
    assert TABLE.fixed().curve(5000)[4] == pytest.approx(3.2)  # no guess beyond the last context


def test_beyond_the_widest_step_the_last_slope_goes_on() -> None:
    curve = TABLE.fixed().curve(0)
    assert len(curve) == MAX_WIDTH + 1 and curve[18] == pytest.approx(2.4 + 10 * 0.2)
    assert TABLE.fixed().step(108, 0) == pytest.approx(2.4 + 100 * 0.2)


def test_steps_of_many_sequences_are_learnt_from_beyond_the_table() -> None:
    costs = TABLE.fixed()
    before = costs.step(8, 0)
    for _ in range(100):
        costs.observe(300, 0, 200.0)  # 60.8 by the slope
    assert costs.step(300, 0) == pytest.approx(200.0, rel=0.1)
    assert costs.step(8, 0) == before  # of narrow steps it says nothing


def test_a_wider_step_is_never_cheaper() -> None:
    bumpy = StepCosts((1, 2, 3), (0,), ((1.0, 1.5, 1.2),), measured=True)
    assert (np.diff(bumpy.curve(0)) >= 0).all()


def test_a_prior_gets_its_unit_from_the_first_step() -> None:
    prior = StepCosts.prior({1: 1.0, 8: 2.0})
    assert not prior.known and prior.step(8, 0) == 2.0
    prior.observe(8, 0, 0.1)
    assert prior.known and prior.step(1, 0) == pytest.approx(0.05)


def test_an_assumed_cost_is_lowered_at_once_and_raised_by_the_third_timing() -> None:
    """The first steps of a model may be those of cold kernels."""
    for timings, known, one in (
        ([], False, 0.01), ([0.1], False, 0.01), ([0.1, 0.08], False, 0.01), ([0.1, 0.06, 0.08], True, 0.03),
        ([0.012], True, 0.006), ([0.1, 0.012], True, 0.006),
    ):  # fmt: skip
        costs = StepCosts.prior({1: 1.0, 8: 2.0})
        for seconds in timings:
            costs.assume(0.01)  # as a planner does before each draft
            costs.observe(8, 0, seconds)
        if not costs.known:
            costs.assume(0.01)
        assert (costs.known, costs.step(1, 0)) == (known, pytest.approx(one)), timings


def test_drift_of_the_machine_is_followed_and_stalls_are_not() -> None:
    costs = TABLE.fixed()
    for _ in range(80):
        for width in (1, 2, 4, 8):
            costs.observe(width, 0, 1.5 * TABLE.fixed().step(width, 0))
    assert costs.curve(0)[[1, 8]] == pytest.approx([1.5, 3.6], rel=0.05)
    costs.observe(1, 0, 1000.0)
    assert costs.step(1, 0) < 1.7


def test_a_width_that_is_always_dearer_becomes_so() -> None:
    costs = TABLE.fixed()
    for _ in range(300):
        costs.observe(1, 0, 1.0)
        costs.observe(8, 0, 4.8)
    assert costs.step(8, 0) / costs.step(1, 0) == pytest.approx(4.8, rel=0.1)


@pytest.mark.parametrize("measured", [False, True])
def test_a_width_without_steps_keeps_a_cost_between_others(measured: bool) -> None:
    """Steps of 2 and 8 tokens that fit on no line through their table's entries, over a long text."""
    costs = StepCosts((1, 8), (0,), ((1.0, 1.3),), measured=measured)
    for _ in range(20_000):
        costs.observe(2, 0, 0.001)
        costs.observe(8, 0, 0.02)
    assert 0.0001 < costs.step(1, 0) < costs.step(2, 0) < 0.0025
    assert 0.01 < costs.step(8, 0) < 0.02


def test_a_change_of_width_is_not_taken_for_the_width() -> None:
    costs = TABLE.fixed()
    for _ in range(50):
        costs.observe(8, 0, 2.4 + 0.5, changed=True)
    assert costs.step(8, 0) == pytest.approx(2.4, rel=0.02)
    assert costs.change_seconds(0) == pytest.approx(0.5, rel=0.02)


def test_fixed_forgets_what_was_observed() -> None:
    costs = TABLE.fixed()
    costs.observe(1, 0, 1.4)
    assert costs.step(1, 0) != 1.0 and costs.fixed().step(1, 0) == 1.0


def test_steps_that_say_nothing_are_ignored() -> None:
    costs = TABLE.fixed()
    for width, seconds in ((0, 1.0), (2000, 60.0), (1, 0.0)):
        costs.observe(width, 0, seconds)
    assert costs.step(1, 0) == 1.0


@pytest.mark.parametrize(
    "table",
    [
        ((2, 4), (0,), ((1.0, 2.0),)),
        ((1, 1), (0,), ((1.0, 2.0),)),
        ((1, 2), (0,), ((1.0, -2.0),)),
        ((1, 2), (0,), ((1.0, float("nan")),)),
        ((1, 2), (5, 0), ((1.0, 2.0), (1.0, 2.0))),
        ((1, 2), (0,), ((1.0,),)),
    ],
)
def test_tables_that_make_no_sense_are_refused(table: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="cost table"):
        StepCosts(*table)  # type: ignore[arg-type]
