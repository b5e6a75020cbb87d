"""The engine: sequences of any number of threads share the rounds of one model (`core.decoding.rounds`)."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specport.core.decoding.rounds import Rounds
from specport.core.decoding.speculative import SpeculativeDecoding
from specport.core.decoding.work import Decoding, Round
from specport.core.kept_caches import KeptCaches
from specport.core.ports import Model, Policy
from specport.core.prefix_cache import PrefixCache
from specport.core.scheduler import MAX_RUNNING, Scheduler
from specport.core.sequence import Commit, Generation, KeptCache
from specport.core.verify.gates import check_logprobs
from specport.core.verify.tiered_model import TieredModel
from specport.core.verify.verifier import Verifier


class Engine(Rounds):
    """Run generations on one target with one drafting policy.

    policy:      None = plain decoding.
    verifier:    None = the target itself (`TargetVerifier`).
    max_running: maximum number of sequences in a round.
    prefixes:    cache of the model's committed tokens, which sequences may begin with; None = none.
    on_end:      called between rounds with each sequence that has ended; must not raise.
    on_update:   called between rounds before the model gets new weights; must not raise.
    decoding:    another way to decode than drafting with `policy` and verifying; None = that.
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
        on_update: Callable[[], None] | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(model, policy)
        self._on_end, self._on_update = on_end, on_update
        self._decoding = decoding or SpeculativeDecoding(model, policy, verifier)
        self._scheduler = Scheduler(model, max_running, KeptCaches(model, prefixes), whole=_whole(policy))
        self._lock = threading.Lock()  # held through a step; `beside` shares it
        self._sharing: weakref.WeakSet[Engine] = weakref.WeakSet([self])  # the engines on this model
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

    def check(self, generation: Generation) -> None:
        if isinstance(self.model, TieredModel):
            check_logprobs(generation.logprobs)

    def add(self, generation: Generation) -> None:
        self._added.append(generation)

    def release(self, kept: KeptCache) -> None:
        self._released.append(kept)

    def step(self) -> list[Commit]:
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
        """Replace weights of the model between two rounds.

        All that was computed with the old ones is discarded: kept caches, the prefix cache (its store on disk
        is not used any more), and the caches of running sequences. These go on with the new weights: their
        tokens stay, and are read again.
        """
        updates = self.model.weight_updates
        if updates is None:
            super().update_weights(weights)
            return
        updates.check(weights)
        with self._lock:
            for engine in [*self._sharing]:
                engine._tidy()
                # What was preempted before waits, and drafters still hold what they made for it.
                interrupted = [*engine._scheduler.running, *engine._scheduler.waiting]
                engine._scheduler.restart()
                engine._forget(interrupted)
                if engine._on_update is not None:
                    engine._on_update()
            self._scheduler.caches.outdate()
            updates.replace(weights)

    def tidy(self) -> None:
        with self._lock:
            self._tidy()

    @property
    def num_unfinished(self) -> int:
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


def _whole(policy: Policy | None) -> bool:
    """Return whether drafts need the target's states of whole prompts."""
    return policy is not None and policy.needs.prompt
