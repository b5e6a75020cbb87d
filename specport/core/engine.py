"""The engine: sequences of any number of threads share the rounds of one model.

`add` and `cancel` may be called at any time from any thread. A thread that wants tokens steps the engine for
all sequences; other threads wait for that step and read their tokens from their sequence's inbox. The engine
has no thread of its own, so nothing runs while no caller asks for tokens.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from specport.core.decoding.speculative import SpeculativeDecoding
from specport.core.decoding.work import Round
from specport.core.kept_caches import KeptCaches
from specport.core.ports import Model, Policy
from specport.core.prefix_cache import PrefixCache
from specport.core.scheduler import MAX_RUNNING, Scheduler
from specport.core.sequence import Commit, Generation, KeptCache
from specport.core.verify.verifier import Verifier
from specport.errors import DeviceError


class Engine:
    """Run generations on one target with one drafting policy.

    policy:      None = plain decoding.
    verifier:    None = the target itself (`TargetVerifier`).
    max_running: maximum number of sequences in a round.
    prefixes:    cache of the model's committed tokens, which sequences may begin with; None = none.
    on_end:      called between rounds with each sequence that has ended; must not raise.
    """

    def __init__(
        self,
        model: Model,
        policy: Policy | None = None,
        verifier: Verifier | None = None,
        *,
        max_running: int = MAX_RUNNING,
        prefixes: PrefixCache | None = None,
        on_end: Callable[[Generation], None] | None = None,
    ) -> None:
        self.model, self.policy = model, policy
        self._on_end = on_end
        self._decoding = SpeculativeDecoding(model, policy, verifier)
        self._scheduler = Scheduler(model, max_running, KeptCaches(model, prefixes), whole=_whole(policy))
        self._lock = threading.Lock()  # held through a step; `beside` shares it
        self._sharing: weakref.WeakSet[Engine] = weakref.WeakSet([self])  # the engines on this model
        self._turn = threading.Condition()  # guards `_stepping`
        self._stepping = False
        # Arrivals between rounds. Appending takes no lock: the garbage collector may append at any time.
        self._added: deque[Generation] = deque()
        self._released: deque[KeptCache] = deque()

    def beside(self, policy: Policy | None) -> Engine:
        """Return an engine on the same model with another policy; the steps of both exclude each other.

        Each frees kept caches of the other when memory is short. Neither preempts sequences of the other.
        """
        other = Engine(self.model, policy)
        other._lock, other._sharing = self._lock, self._sharing
        other._sharing.add(other)
        other._scheduler = Scheduler(self.model, caches=self._scheduler.caches, whole=_whole(policy))
        return other

    def add(self, generation: Generation) -> None:
        """Add a sequence from the next round on. Its tokens come out of `run` or its inbox."""
        self._added.append(generation)

    def cancel(self, generation: Generation) -> None:
        """Ask for the end of a sequence before the next round."""
        generation.cancel()

    def release(self, kept: KeptCache) -> None:
        """Free a kept cache before the next round."""
        self._released.append(kept)

    def run(self, generations: Sequence[Generation]) -> Generator[Commit, None, None]:
        """Add these sequences, and yield their tokens as they are committed until all have finished.

        Dropping the iterator cancels them; the next `step` or `tidy` of any thread frees their memory. An
        exception of an `on_token` of theirs ends the iterator too, after the commit in which it was raised.
        """
        for generation in generations:
            self.add(generation)
        try:
            while commits := self._fetch(generations):
                for commit in commits:
                    yield commit
                    if commit.fault is not None:
                        raise commit.fault
        finally:  # the garbage collector may run this in the middle of a round: take no lock, call no model
            for generation in generations:
                generation.cancel()

    def step(self) -> list[Commit]:
        """Run one round over all sequences; return its commits, which are also put into the inboxes."""
        with self._lock:
            self._tidy()
            work = self._scheduler.next_round()
            if not work:
                return []
            done = Round()
            try:
                self._decoding.round(work, done)
                self._scheduler.refused(done.refused)
            except BaseException:  # Ctrl-C as well
                interrupted = [*self._scheduler.running]
                self._scheduler.restart()
                self._forget(interrupted)
                raise
            finally:
                for commit in done.commits:
                    commit.generation.inbox.append(commit)
            self._tidy()
            return done.commits

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace weights of the model between two rounds (`WeightUpdates`).

        All that was computed with the old ones is discarded: kept caches, the prefix cache (its store on disk
        is not used any more), and the caches of running sequences. These go on with the new weights: their
        tokens stay, and are read again.

        Raises DeviceError where the model cannot do it, and InvalidInput for weights that it does not have.
        """
        updates = self.model.weight_updates
        if updates is None:
            raise DeviceError(
                "the weights of this model cannot be replaced while it is loaded",
                "load it on a torch device; a mixture of experts there without exact mode",
            )
        updates.check(weights)
        with self._lock:
            for engine in [*self._sharing]:
                engine._tidy()
                interrupted = [*engine._scheduler.running]
                engine._scheduler.restart()
                engine._forget(interrupted)
            self._scheduler.caches.outdate()
            updates.replace(weights)

    def tidy(self) -> None:
        """Free the memory of ended, cancelled and dropped sequences."""
        with self._lock:
            self._tidy()

    @property
    def num_unfinished(self) -> int:
        """Return the number of sequences that wait or run."""
        return len(self._added) + len(self._scheduler.waiting) + len(self._scheduler.running)

    def _tidy(self) -> None:
        while self._added:
            self._scheduler.add(self._added.popleft())
        ended = self._scheduler.ended()
        faults = self._forget(ended)
        if self._on_end is not None:
            for generation in ended:
                self._on_end(generation)
        while self._released:
            self._scheduler.release(self._released.popleft())
        if faults:
            raise faults[0]

    def _forget(self, generations: Sequence[Generation]) -> list[Exception]:
        """Free what drafters hold for these sequences; return the exceptions that this raised."""
        faults: list[Exception] = []
        for generation in generations:
            try:
                self._decoding.forget(generation.key)
            except Exception as fault:  # the other sequences must still be freed
                faults.append(fault)
        return faults

    def _fetch(self, generations: Sequence[Generation]) -> list[Commit]:
        """Return new commits of these sequences; step unless another thread does. [] once all finished."""
        while True:
            mine = False
            try:
                with self._turn:
                    if commits := _emptied(generations):
                        return commits
                    if all(g.ended for g in generations):
                        break
                    if self._stepping:
                        self._turn.wait(1.0)  # without a timeout, Ctrl-C would not interrupt it on Windows
                        continue
                    mine = self._stepping = True
                self.step()
            finally:
                if mine:
                    with self._turn:
                        self._stepping = False
                        self._turn.notify_all()
        self.tidy()  # waits for another thread's step, which may commit the last tokens
        return _emptied(generations)


def _whole(policy: Policy | None) -> bool:
    """Return whether drafts need the target's states of whole prompts."""
    return policy is not None and policy.needs.prompt


def _emptied(generations: Sequence[Generation]) -> list[Commit]:
    """Empty the inboxes and return the commits."""
    return [g.inbox.popleft() for g in generations for _ in range(len(g.inbox))]
