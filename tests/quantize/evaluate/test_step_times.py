"""Timing of several models in turns, on toys with a clock of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from specport.quantize.evaluate import step_times
from specport.quantize.evaluate.step_times import Plan, Timing, measure, quartiles
from support.toys.toy_model import ToyModel

from specport.core.ports import Row, StepOutput
from specport.progress import silent

PROMPT = [i % 11 for i in range(30)]


class Ticking(ToyModel):
    """Takes a given time per new token on a shared clock.

    The first of two steps of a new width takes `change` more. Its first steps of all take ten times as long.
    """

    now = 0.0
    order: list[str] = []  # noqa: RUF012

    def __init__(self, name: str, seconds: float, change: float = 0.0, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.name, self.seconds, self.change, self.last = name, seconds, change, 0
        self.behind: list[int] = []  # tokens in the cache before each step

    def step(self, rows: list[Row]) -> StepOutput:  # type: ignore[override]
        width = len(rows[0].block)
        cold = len(self.widths) <= step_times.DECODE_TOKENS
        Ticking.now += self.seconds * width * (10 if cold else 1) + (width != self.last) * self.change
        self.last = width
        self.behind.append(rows[0].handle.length)
        if width == len(PROMPT):
            Ticking.order.append(self.name)
        return super().step(rows)


def timed(models: list[Ticking], plan: Plan, together: bool = True) -> list[Timing]:
    Ticking.order.clear()
    loads = [lambda model=model: model for model in models]  # type: ignore[misc]
    return measure(loads, plan, together, silent, clock=lambda: Ticking.now)


@pytest.mark.parametrize("together", [True, False])
def test_answers_and_steps(together: bool) -> None:
    models = [Ticking("a", 0.001), Ticking("b", 0.004)]
    plan = Plan(PROMPT, context=50, widths=(1, 2, 8), rounds=2)
    for timing, seconds in zip(timed(models, plan, together), (1.0, 4.0), strict=True):
        assert timing.tpot.median == pytest.approx(seconds)
        assert timing.ttft.median == pytest.approx(30 * seconds)
        assert timing.medians == pytest.approx({1: seconds, 2: 2 * seconds, 8: 8 * seconds})
        assert timing.spread == pytest.approx(0, abs=1e-9)
    turns = ["a", "b", "b", "a", "a", "b"] if together else ["a"] * 3 + ["b"] * 3
    assert Ticking.order == turns
    assert all(model.num_open == 0 for model in models)


def test_steps_stand_behind_the_context_and_leave_nothing() -> None:
    model = Ticking("a", 0.001)
    timed([model], Plan(PROMPT, context=50, widths=(4,), rounds=2))
    fours = [behind for width, behind in zip(model.widths, model.behind, strict=True) if width == 4]
    assert fours == [50] * (2 * (2 + step_times.WARM))


def test_a_change_of_width_is_not_part_of_a_step() -> None:
    (timing,) = timed([Ticking("a", 0.001, change=0.5)], Plan(PROMPT, context=50, widths=(1, 2, 8), rounds=2))
    assert timing.medians == pytest.approx({1: 1.0, 2: 2.0, 8: 8.0})


def test_widths_beyond_the_largest_bucket_are_left_out() -> None:
    model = Ticking("a", 0.001)
    model.capabilities = replace(model.capabilities, buckets=(2, 8))
    (timing,) = timed([model], Plan(PROMPT, context=50, rounds=2))
    assert [*timing.steps] == [1, 2, 4, 8]


def test_quartiles() -> None:
    times = quartiles([0.001 * n for n in range(1, 8)])
    assert (times.low, times.median, times.high) == pytest.approx((2.0, 4.0, 6.0))
    assert times.spread == pytest.approx(1.0)


def test_the_spread_is_the_largest_of_all() -> None:
    calm, wild = quartiles([0.001] * 3), quartiles([0.001, 0.002, 0.003])
    assert Timing(calm, calm, {1: calm, 2: wild}).spread == wild.spread > calm.spread
    assert Timing(wild, calm, {1: calm}).spread == wild.spread
