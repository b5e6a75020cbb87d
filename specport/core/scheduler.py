"""The scheduler: choose which sequences wait, which run, and what each of them reads in the next round.

Sequences are admitted first come, first served, while the cache has room. When the cache is full, kept caches
that no sequence uses are freed first. Then the sequence that was admitted last is preempted: its cache is
freed, and it waits and is computed again later, with the same text. So no sequence ends because another grew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from specport.core.decoding.work import Work
from specport.core.kept_caches import KeptCaches
from specport.core.ports import CacheHandle, Model, Refusal
from specport.core.prefix_cache import PrefixCache
from specport.core.sequence import Generation, KeptCache

# Prompt tokens per round: bound the memory of a step and the delay of a cancellation. Fewer while other
# sequences decode, since those wait for the prompt's part of the step.
PREFILL_CHUNK, PREFILL_BESIDE = 512, 128
MAX_RUNNING = 64
_RESERVE = 64  # free tokens that each running sequence should have before another is admitted


class Scheduler:
    """Hold and schedule the sequences of one model. Not thread-safe: the engine serializes the calls.

    model:       opens, truncates and closes their caches.
    max_running: maximum number of sequences in a round.
    caches:      kept caches of the model, shared by all its schedulers; None = this is the only one.
    whole:       whether drafts need a step on the whole prompt (`Needs.prompt`). Texts with a seed then read
                 all of theirs: with other drafts a seed would give another text.
    """

    def __init__(
        self,
        model: Model,
        max_running: int = MAX_RUNNING,
        caches: KeptCaches | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self._model, self._max_running, self._whole = model, max_running, whole
        self.caches = KeptCaches(model) if caches is None else caches
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # in the order of admission
        self._cramped: Generation | None = None  # runs alone and has no room for a draft
        self._full = False  # a sequence was preempted, and no memory was freed since

    def add(self, generation: Generation) -> None:
        """Put a sequence at the end of the queue."""
        self.waiting.append(generation)

    def ended(self) -> list[Generation]:
        """Remove and return the finished and cancelled sequences; free or keep their caches."""
        removed = [g for g in (*self.running, *self.waiting) if g.ended]
        for generation in removed:
            self._full &= generation.handle is None
            (self.running if generation in self.running else self.waiting).remove(generation)
            generation.finish_reason = generation.finish_reason or "cancelled"
            self._end(generation)
        return removed

    def next_round(self) -> list[Work]:
        """Admit sequences while there is room; return each running sequence's work."""
        self._admit()
        decoding = [g for g in self.running if g.decoding]
        budget = PREFILL_BESIDE if decoding else PREFILL_CHUNK
        work = []
        for generation in self.running:
            if generation.decoding:
                self._share(generation)
                work.append(Work(generation, 1, draft=generation is not self._cramped))
            elif budget > 0:
                # After a preemption the root token is left for a separate round, with a draft as in the
                # lost round: a seed must determine the text.
                unread = generation.num_unread - (generation.num_output_tokens > 0)
                count = min(unread, budget)
                budget -= count
                work.append(Work(generation, count))
        return work

    def refused(self, rows: Sequence[tuple[Generation, Refusal]]) -> None:
        """Make room for refused sequences, or end one that runs alone with all the memory."""
        full = [generation for generation, why in rows if why == "cache"]
        for generation, why in rows:
            if why == "context":
                generation.finish_reason = "length"
        if not full or self._make_room():
            return  # rows that still do not fit are refused again
        (alone,) = full
        if alone.decoding and alone is not self._cramped:
            self._cramped = alone  # without a draft it may fit
        else:
            alone.finish_reason = "length"

    def restart(self) -> None:
        """Preempt all running sequences: an exception may have left their caches half written."""
        for generation in self.running[::-1]:
            self._wait(generation)

    def release(self, kept: KeptCache) -> None:
        """Free a kept cache that is no longer needed, at once or when the sequence that uses it ends."""
        kept.released = True
        self._full &= not self.caches.free(kept)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_running:
            if self._full and self.running:
                return
            generation = self.waiting[0]
            while not self._fits(generation):
                if not self._reclaim(generation.kept):
                    if self.running:
                        return
                    if not self._readable(generation):
                        generation.finish_reason = "length"  # before hours are spent on what is read
                        return  # the next round admits others
                    break  # a single sequence gets all the memory
            generation.admitted(self._opened(generation))
            self.running.append(self.waiting.popleft())

    def _fits(self, generation: Generation) -> bool:
        """Return whether there is room for the sequence's tokens and for every running sequence to grow."""
        handle, held = _kept(generation)
        wanted = len(generation.tokens) + _RESERVE * (1 + len(self.running))
        prefixes = self._prefixes(generation)
        if handle is None and prefixes is not None:
            held = prefixes.held(generation.known)
        return self._model.room(handle) >= min(wanted, self._model.max_context) - held

    def _readable(self, generation: Generation) -> bool:
        """Return whether the free memory holds the sequence's tokens."""
        handle, held = _kept(generation)
        return self._model.room(handle) + held >= len(generation.tokens)

    def _opened(self, generation: Generation) -> CacheHandle:
        """Return the sequence's kept cache, cut to the common prefix with its tokens, or a new cache.

        The new one begins with blocks of the prefix cache where these hold more of the tokens.
        """
        kept, tokens = generation.kept, generation.known
        handle = self.caches.take(kept) if kept is not None else None
        common = 0
        if kept is not None and handle is not None:
            most = min(handle.length, len(tokens))
            common = next((i for i in range(most) if kept.tokens[i] != tokens[i]), most)
        prefixes, capacity = self._prefixes(generation), len(generation.tokens)
        if prefixes is not None and prefixes.known(tokens) > common:
            begun = prefixes.open(tokens, capacity)
            if begun is not None:
                if handle is not None:
                    self._model.close(handle)
                return begun
        if handle is None:
            return self._model.open(min(capacity, self._model.room()), generation.conditioning)
        self._model.truncate(handle, common)
        return handle

    def _prefixes(self, generation: Generation) -> PrefixCache | None:
        """Return the prefix cache where this sequence may begin with blocks of it."""
        return None if self._whole and generation.params.seeded else self.caches.prefixes

    def _share(self, generation: Generation, *, ends: bool = False) -> None:
        """Keep what a sequence's cache holds in the prefix cache: once its prompt is read, and at its end."""
        prefixes, handle = self.caches.prefixes, generation.handle
        if prefixes is None or handle is None or (generation.shared and not ends):
            return
        generation.shared = True
        prefixes.keep(handle, generation.tokens[: handle.length])

    def _end(self, generation: Generation) -> None:
        """Close the sequence's cache, or store it in its `KeptCache`."""
        self._share(generation, ends=True)
        if generation is self._cramped:
            self._cramped = None
        handle, generation.handle = generation.handle, None
        if handle is None:
            return
        kept = generation.kept
        if kept is None or kept.released or kept.handle is not None:
            self._model.close(handle)
            return
        # A text that ended inside an accepted path leaves extra tokens in the cache, or its own last token,
        # which plain decoding would not have read. The next turn must read the same tokens in both cases.
        length = min(handle.length, len(generation.tokens) - 1)
        self._model.truncate(handle, length)
        self.caches.keep(kept, handle, generation.tokens[:length])

    def _make_room(self) -> bool:
        """Free memory: an idle cache, else preempt the sequence admitted last.

        Return False where only one sequence runs and no cache is idle.
        """
        if any(generation.ended for generation in self.running) or self._reclaim():
            return True  # ended sequences are freed before the next round
        if len(self.running) == 1:
            return False
        self._wait(self.running[-1])
        self._full = True
        return True

    def _reclaim(self, spared: KeptCache | None = None) -> bool:
        """Free the least recently used kept cache but `spared`; return False where there is none."""
        freed = self.caches.reclaim(spared)
        self._full &= not freed
        return freed

    def _wait(self, generation: Generation) -> None:
        """Preempt a running sequence: free its cache and put it at the front of the queue."""
        self.running.remove(generation)
        self.waiting.appendleft(generation)
        generation.metrics.num_preemptions += 1
        handle, generation.handle = generation.handle, None
        if generation is self._cramped:
            self._cramped = None
        if handle is not None:
            self._model.close(handle)


def _kept(generation: Generation) -> tuple[CacheHandle | None, int]:
    """Return the cache that an earlier turn left for a sequence, and how many tokens it holds."""
    handle = generation.kept.handle if generation.kept else None
    return handle, handle.length if handle is not None else 0
