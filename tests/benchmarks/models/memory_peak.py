"""Samples the memory of this process and its children while something runs."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_EVERY = 0.2  # seconds
_SPARING = 10  # a sample takes long where much is mapped: it waits this many times as long
_LINE = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


@dataclass
class Peak:
    """Hold the most bytes that all processes together had, and when.

    anonymous: what they wrote; nothing but swap can take it back.
    resident:  with pages of mapped files, which the system drops when it needs memory.
    stages:    name of a stage -> its anonymous peak. seconds: from the beginning to the end.

    On Linux, pages that processes share count once (PSS); converters fork. Elsewhere both figures are the sum
    of the resident sets.
    """

    anonymous: int = 0
    resident: int = 0
    seconds: float = 0.0
    stages: dict[str, int] = field(default_factory=dict)
    stage: str = ""

    def show(self, what: str, share: float) -> None:
        """Be the progress callback of what runs: peaks are noted by stage."""
        self.stage = what

    def sample(self) -> None:
        resident = anonymous = 0
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            with suppress(psutil.Error, OSError, KeyError):  # it has ended
                own = _bytes(process)
                resident, anonymous = resident + own[0], anonymous + own[1]
        self.resident, self.anonymous = max(self.resident, resident), max(self.anonymous, anonymous)
        self.stages[self.stage] = max(self.stages.get(self.stage, 0), anonymous)


def _bytes(process: psutil.Process) -> tuple[int, int]:
    """Return the resident and the anonymous bytes of a process."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():
        rss = process.memory_info().rss
        return rss, rss
    found = dict(_LINE.findall(rollup.read_text(encoding="ascii")))  # proc(5), in kB
    return 1024 * int(found["Pss"]), 1024 * int(found.get("Pss_Anon", found["Pss"]))


@contextmanager
def sampled() -> Iterator[Peak]:
    """Yield the peak, which grows while the context lasts."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        took = 0.0
        while not done.wait(max(_EVERY, _SPARING * took)):
            start = time.perf_counter()
            peak.sample()
            took = time.perf_counter() - start

    began = time.perf_counter()
    peak.sample()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.seconds = time.perf_counter() - began
