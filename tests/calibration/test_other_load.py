"""Other programs that keep the machine busy are noticed."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from support.toys.toy_model import ToyModel

from specport.calibration.measure import measure
from specport.calibration.other_load import OtherLoad
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


class SlowModel(ToyModel):
    """Steps as long as real ones: the system counts processor time in hundredths of a second."""

    def step(self, rows: Sequence[Row]) -> StepOutput:
        time.sleep(0.01)
        return super().step(rows)


def test_a_busy_machine_is_noticed() -> None:
    with burning(os.cpu_count() or 1):
        found = measure(SlowModel(max_context=256), widths=(1, 32), contexts=(64,), budget_s=1.0)
    assert found.busy


def test_the_load_of_other_programs_is_measured() -> None:
    with burning(1):
        load = OtherLoad()
        time.sleep(1.0)
        assert 0.3 < load.cores() <= (os.cpu_count() or 1) + 0.1
    own = OtherLoad()
    burn(time.monotonic() + 1.0)
    assert own.cores() < (os.cpu_count() or 1) - 0.2  # its own work does not count
