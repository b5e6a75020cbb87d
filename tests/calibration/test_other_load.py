"""Other programs that keep the machine busy: they are noticed, and what is waited for them is taken out."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from support.toy_model import ToyModel

from specport.calibration.measure import measure
from specport.calibration.other_load import OtherLoad, waited_seconds
from specport.core.ports import Row, StepOutput


def burn(end: float) -> None:
    while time.monotonic() < end:
        pass


@contextmanager
def burning(processes: int, seconds: float = 60.0) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    end = time.monotonic() + seconds
    burners = [context.Process(target=burn, args=(end,), daemon=True) for _ in range(processes)]
    for burner in burners:
        burner.start()
    time.sleep(1.0)  # until they run
    try:
        yield
    finally:
        for burner in burners:
            burner.terminate()
            burner.join()


def test_a_busy_machine_is_noticed() -> None:
    with burning(os.cpu_count() or 1):
        found = measure(ToyModel(max_context=256), widths=(1, 32), contexts=(64,), budget_s=1.0)
    assert found.busy


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells how long threads waited")
def test_waiting_for_other_programs_is_counted() -> None:
    with burning(2 * (os.cpu_count() or 1)):
        before = waited_seconds()
        burn(time.monotonic() + 2.0)
        assert waited_seconds() - before > 0.2


def test_the_load_of_other_programs_is_measured() -> None:
    with burning(1):
        load = OtherLoad()
        time.sleep(1.0)
        assert 0.3 < load.cores() <= (os.cpu_count() or 1) + 0.1
    own = OtherLoad()
    burn(time.monotonic() + 1.0)
    assert own.cores() < (os.cpu_count() or 1) - 0.2  # its own work does not count


def test_waiting_only_grows() -> None:
    values = [waited_seconds() for _ in range(3)]
    assert values == sorted(values) and values[0] >= 0.0


def test_waiting_is_taken_out_of_each_step() -> None:
    model = ToyModel(max_context=256)
    now = {"clock": 0.0, "waited": 0.0}
    step = model.step

    def slow(rows: Sequence[Row]) -> StepOutput:
        width = len(rows[0].block)
        now["clock"] += 1.0 + width + 0.5 * width
        now["waited"] += 0.5 * width
        return step(rows)

    model.step = slow  # type: ignore[method-assign]
    found = measure(
        model, widths=(1, 4), contexts=(64,), budget_s=0.0,
        clock=lambda: now["clock"], waited=lambda: now["waited"],
    )  # fmt: skip
    assert found.costs.seconds[0] == pytest.approx((2.0, 5.0))
