"""When to work: while nobody else needs the machine, and for no longer than the user allows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import psutil

from specport.calibration.other_load import BUSY_CORES, OtherLoad
from specport.progress import Progress

QUIET_S = 60.0  # seconds without other work after which the machine counts as idle
LOOK_S = 5.0  # seconds of one look at what other programs do
LOOKS = 2  # busy looks in a row at which work stops: a single one may be a passing task
NICENESS = 10


class Load(Protocol):
    """Measure from when it is made."""

    def cores(self) -> float:
        """Return how many cores other programs used on average so far."""
        ...


def _others() -> Load:
    return OtherLoad(family=True)


class Stopped(Exception):
    """Work has to stop for now. Its progress is kept.

    for_good: whether the time that the user allowed is over.
    """

    def __init__(self, *, for_good: bool) -> None:
        super().__init__("stopped")
        self.for_good = for_good


class Pace:
    """Stop work by raising Stopped out of its progress callback.

    budget_s: seconds of work. idle: whether to stop while other programs are busy.
    load: measures them from when it is made; clock, sleep: for tests.
    """

    def __init__(
        self,
        budget_s: float,
        *,
        idle: bool = False,
        load: Callable[[], Load] = _others,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._left, self._idle = budget_s, idle
        self._load, self._clock, self._sleep = load, clock, sleep
        self._look, self._looked, self._busy = load(), clock(), 0
        self._resumed = clock()

    def wait(self, progress: Progress) -> None:
        """Return when the machine has been idle for QUIET_S; at once where that is not asked for."""
        if not self._idle:
            return
        self._pause()
        quiet = 0.0
        while quiet < QUIET_S:
            progress("waiting until the machine is idle", 0.0)
            look = self._load()
            self._sleep(LOOK_S)
            quiet = quiet + LOOK_S if look.cores() < BUSY_CORES else 0.0
        self._resumed = self._looked = self._clock()
        self._look, self._busy = self._load(), 0

    def checked(self, progress: Progress) -> Progress:
        """Return a callback that also raises Stopped where work has to stop."""

        def show(stage: str, share: float) -> None:
            progress(stage, share)
            self.check()

        return show

    def check(self) -> None:
        """Raise Stopped where the time is over, or other programs have been busy for some looks."""
        now = self._clock()
        if now - self._resumed > self._left:
            raise Stopped(for_good=True)
        if not self._idle or now - self._looked < LOOK_S:
            return
        self._busy = self._busy + 1 if self._look.cores() >= BUSY_CORES else 0
        self._look, self._looked = self._load(), now
        if self._busy >= LOOKS:
            raise Stopped(for_good=False)

    def _pause(self) -> None:
        """Count the time that was worked since the last pause."""
        now = self._clock()
        self._left -= now - self._resumed
        self._resumed = now


@contextmanager
def low_priority() -> Iterator[None]:
    """Let other programs go first meanwhile, for this process and those that it starts.

    Where the system lets only administrators raise a priority again (Linux, macOS), it stays low for others.
    """
    process = psutil.Process()
    before = None
    with suppress(psutil.Error, OSError, AttributeError):
        before = process.nice()
        if os.name == "nt":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        elif before < NICENESS:
            process.nice(NICENESS)
    try:
        yield
    finally:
        if before is not None:
            with suppress(psutil.Error, OSError, AttributeError):
                process.nice(before)
