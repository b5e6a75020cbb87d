"""Tell how busy other programs keep the machine during a measurement."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil

BUSY_CORES = 0.15  # of other programs, from which on a machine is called busy


class OtherLoad:
    """Follow other programs' use of the processor from now on.

    family: whether processes that this one starts count as its own work.
    """

    def __init__(self, *, family: bool = False) -> None:
        self._family = family
        self._began = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds(family)

    def cores(self) -> float:
        """Return how many cores other programs used on average so far."""
        elapsed = time.perf_counter() - self._began
        others = (_busy_seconds() - self._busy) - (_own_seconds(self._family) - self._own)
        return max(0.0, others / elapsed) if elapsed > 0 else 0.0


def _busy_seconds() -> float:
    """Return the seconds that all cores have worked since the machine started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0)
    return float(sum(times) - idle)


def _own_seconds(family: bool) -> float:
    times = os.times()
    if not family:
        return times.user + times.system
    seconds = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            used = child.cpu_times()
            seconds += used.user + used.system
    return float(seconds)
