"""The worker: one thread that steps the engine while any sequence runs, and sleeps otherwise."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from specport.core.decoding.rounds import Rounds
from specport.core.metrics import StepCounts
from specport.core.sequence import Commit, Generation

MAX_FAULTS = 2  # rounds in a row that fail before the running sequences are given up
_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Count what happens. Called by the worker's thread; must not raise."""

    def round(self, commits: Sequence[Commit]) -> None: ...

    def committed(self, num_tokens: int, seconds: float | None) -> None:
        """Count the tokens of one commit; seconds since the sequence's last one, None for its first."""
        ...


class Job:
    """A sequence in the worker's hands.

    steps: counts of its verify steps, which the reader of its text takes out.
    fault: why it ended, where that was an exception. `done` is set last, after its cache was freed or kept.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.steps: deque[StepCounts] = deque()
        self.fault: Exception | None = None
        self.done = False
        self._last: float | None = None

    def take(self, observer: Observer) -> list[Commit]:
        """Empty the sequence's inbox."""
        inbox, now = self.generation.inbox, time.perf_counter()
        commits = [inbox.popleft() for _ in range(len(inbox))]
        for commit in commits:
            self.fault = self.fault or commit.fault
            if commit.step is not None:
                self.steps.append(commit.step)
            observer.committed(len(commit.tokens), None if self._last is None else now - self._last)
            self._last = now
        return commits


class Worker:
    """Run sequences on an engine.

    changed: called by the worker's thread after each round with the jobs that have new tokens or are done.
    """

    def __init__(self, engine: Rounds, observer: Observer, changed: Callable[[Sequence[Job]], None]) -> None:
        self._engine, self._observer, self._changed = engine, observer, changed
        self._arrivals: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="specport-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, job: Job) -> None:
        """Run a sequence from the next round on. Any thread may call this."""
        self._arrivals.append(job)
        self._wake.set()

    def nudge(self) -> None:
        """Look after sequences that were cancelled, also where nothing else runs."""
        self._wake.set()

    def stop(self, seconds: float) -> bool:
        """Cancel all sequences and end the thread. Return whether it ended in time."""
        self._stopping = True
        self._wake.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        faults = 0
        while True:
            if not self._jobs and not self._arrivals:
                if self._stopping:
                    return
                self._wake.wait()
            self._wake.clear()
            while self._arrivals:
                job = self._arrivals.popleft()
                self._jobs.append(job)
                self._engine.add(job.generation)
            if self._stopping:
                for job in self._jobs:
                    job.generation.cancel()
            try:
                self._engine.step()
                faults = 0
            except Exception as fault:
                # The engine computes interrupted sequences anew. What fails again and again is given up.
                faults += 1
                _log.exception("a round failed")
                if faults >= MAX_FAULTS:
                    faults = 0
                    for job in self._jobs:
                        job.fault = fault
                        job.generation.cancel()
            try:
                self._report()
            except Exception:  # the thread must live: without it every request waits for ever
                _log.exception("a round's news were lost")

    def _report(self) -> None:
        """Hand out new tokens, and the sequences that have ended."""
        found: list[Job] = []
        commits: list[Commit] = []
        for job in self._jobs:
            # The engine has let go of it, and its last commit is in the inbox.
            ended = job.generation.finish_reason is not None and job.generation.handle is None
            new = job.take(self._observer)
            commits += new
            job.done = ended
            if new or ended:
                found.append(job)
        self._jobs = [job for job in self._jobs if not job.done]
        self._observer.round(commits)
        if found:
            self._changed(found)
