"""Manage the slots of a cache, and its size within the memory limit. Knows no tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from specport.backends.torch.slots.cache import SMALLEST, SlotCache, capacity_for

from specport.errors import ContextFull


class SlotPool:
    """Hand out the slots of a cache, grow it, and shrink it while no slot is in use.

    When the last slot is given back, the slots get the least capacity: deep ones would leave no memory for
    more of them. It takes far longer to read a long text than to grow again. Their number is cut where it is
    more than twice what was needed.

    spare:   rows of each slot behind a sequence's last one: for padding, and for what idle slots write.
    budget:  asked before the cache grows for the bytes that all of it may take; None = no limit is known.
    resized: called after the cache's tensors were replaced.
    shrinks: whether the cache shrinks. With graphs it must not: they hold the addresses of its tensors, and
             to capture them again may take longer than a text.
    """

    def __init__(
        self,
        cache: SlotCache,
        spare: int,
        budget: Callable[[], int | None],
        resized: Callable[[], None],
        *,
        shrinks: bool,
    ) -> None:
        self._cache, self._spare, self._budget = cache, spare, budget
        self._resized, self._shrinks = resized, shrinks
        self._free: list[int] = [*range(cache.slots - 1, -1, -1)]
        self._needed_slots = 0  # most in use at a time since none was in use last

    @property
    def usage(self) -> float | None:
        """Return the share that used slots take of the most that the cache may; None = no limit is known."""
        budget = self._budget()
        if budget is None:
            return None
        shape, slots = self._cache.shape, self._cache.slots
        own = shape.nbytes(1, self._cache.capacity) + shape.state_bytes
        # The budget is what is free beside the present cache, which is freed only after it grew.
        return (slots - len(self._free)) * own / max(1, slots * own, budget)

    def take(self, rows: int) -> int:
        """Return a free slot that holds so many rows. Raises ContextFull where there is no memory for it."""
        slots = self._slots(new=True)
        capacity = self._capacity(slots, rows)
        if not capacity:
            shape = self._cache.shape
            wanted = shape.nbytes(slots, capacity_for(rows + self._spare)) + slots * shape.state_bytes
            allowed = self._budget() or 0
            raise ContextFull(
                f"the key/value cache would take {wanted / 1e9:.1f} GB, it may take {allowed / 1e9:.1f} GB",
                "choose a smaller --max-context, or fewer texts at a time",
            )
        if slots > self._cache.slots:  # twice as many where memory permits: graphs are lost each time
            most = self._allowed(self._cache.shape.nbytes(1, capacity) + self._cache.shape.state_bytes)
            slots = max(slots, min(2 * self._cache.slots, most))
        self._resize(slots, capacity)
        slot = self._free.pop()
        self._needed_slots = max(self._needed_slots, self._cache.slots - len(self._free))
        return slot

    def give(self, slot: int) -> None:
        """Take a slot back."""
        self._free.append(slot)
        self._free.sort(reverse=True)  # the lowest slot goes out first: windows stay small
        if self._shrinks and len(self._free) == self._cache.slots:
            self._shrink()

    def _shrink(self) -> None:
        """Give back memory while no slot is in use."""
        needed, self._needed_slots = self._needed_slots, 0
        slots = needed if self._cache.slots > 2 * needed else self._cache.slots
        self._resize(slots, min(capacity_for(self._spare), self._cache.capacity))

    def reserve(self, needs: Iterable[int]) -> int:
        """Grow every slot to the largest of these numbers of rows that memory permits; return its rows."""
        for rows in sorted(needs, reverse=True):
            if capacity := self._capacity(self._cache.slots, rows):
                self._resize(self._cache.slots, capacity)
                break
        return self._cache.capacity - self._spare

    def most_rows(self, *, new: bool) -> int:
        """Return how many rows one sequence (new: one more) could have if no other grew; may be below 0."""
        slots = self._slots(new)
        rows = self._most_capacity(slots)
        if slots == self._cache.slots:
            rows = max(rows, self._cache.capacity)
        elif rows < self._cache.capacity:
            rows = 0
        return rows - self._spare

    def _slots(self, new: bool) -> int:
        """Return the slots that there must be for the sequences that are open (new: and one more)."""
        return self._cache.slots + (1 if new and not self._free else 0)

    def _capacity(self, slots: int, rows: int) -> int:
        """Return the capacity at which each of these slots holds so many rows; 0 where memory forbids it."""
        present, needed = self._cache.capacity, rows + self._spare
        if slots == self._cache.slots and needed <= present:
            return present
        capacity = min(max(present, capacity_for(needed)), self._most_capacity(slots))
        return capacity if capacity >= max(present, needed) else 0

    def _most_capacity(self, slots: int) -> int:
        """Return the most rows that each of these slots may have."""
        shape = self._cache.shape
        rows = self._allowed(shape.nbytes(slots, 1), slots * shape.state_bytes)
        return max(0, rows) // SMALLEST * SMALLEST

    def _allowed(self, nbytes: int, taken: int = 0) -> int:
        """Return how many times so many bytes the cache may take beside those that are taken."""
        budget = self._budget()
        return sys.maxsize if budget is None else (budget - taken) // max(1, nbytes)

    def _resize(self, slots: int, capacity: int) -> None:
        if (slots, capacity) == (self._cache.slots, self._cache.capacity):
            return
        new = range(self._cache.slots, slots)
        self._cache.resize(slots, capacity)
        self._resized()
        self._free = sorted([*(slot for slot in self._free if slot < slots), *new], reverse=True)
