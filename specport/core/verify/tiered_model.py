"""A target beside its slim verifier, as one model whose sequences have a cache in each.

The slim verifier's cache holds all committed tokens. The target's may be behind: it reads what the slim
verifier let through when it is next asked (`tiered.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from specport.core.ports import CacheHandle, Model, Row


@dataclass(eq=False)
class TieredHandle:
    """Hold a sequence's cache in the target and in its slim verifier."""

    full: CacheHandle
    slim: CacheHandle

    @property
    def length(self) -> int:
        return self.slim.length

    @property
    def backlog(self) -> int:
        """Return how many committed tokens the target has not read."""
        return self.slim.length - self.full.length


class TieredModel:
    """Open, fork and close sequences of a target and its slim verifier together (`Model`).

    `TieredVerifier` steps and commits. What reads the target's states or cache is not there: hidden states,
    early exit, heads and the prefix cache.

    Raises ValueError for a model that was loaded without a slim verifier.
    """

    early_exit = chain = head_rows = hidden_head = mtp = slim = prefix_blocks = weight_updates = None

    def __init__(self, full: Model) -> None:
        if full.slim is None:
            raise ValueError("the model has no slim verifier")
        self.full, self.thin = full, full.slim
        self.capabilities = replace(full.capabilities, hidden_layers=(), conditioning=False)
        self.vocab_size, self.max_context = full.vocab_size, min(full.max_context, self.thin.max_context)

    @property
    def cache_usage(self) -> float | None:
        known = [usage for model in (self.full, self.thin) if (usage := model.cache_usage) is not None]
        return max(known, default=None)

    def room(self, handle: TieredHandle | None = None) -> int:
        if handle is None:
            return min(self.full.room(), self.thin.room())
        return max(0, min(self.full.room(handle.full) - handle.backlog, self.thin.room(handle.slim)))

    def open(self, capacity: int = 0, conditioning: Any = None) -> TieredHandle:
        full = self.full.open(capacity, conditioning)
        return TieredHandle(full, self._beside(full, lambda: self.thin.open(capacity, conditioning)))

    def fork(self, handle: TieredHandle, length: int) -> TieredHandle:
        full = self.full.fork(handle.full, min(length, handle.full.length))
        return TieredHandle(full, self._beside(full, lambda: self.thin.fork(handle.slim, length)))

    def truncate(self, handle: TieredHandle, length: int) -> None:
        self.full.truncate(handle.full, min(length, handle.full.length))
        self.thin.truncate(handle.slim, length)

    def close(self, handle: TieredHandle) -> None:
        self.full.close(handle.full)
        self.thin.close(handle.slim)

    def step(self, rows: Sequence[Row]) -> NoReturn:
        raise TypeError("a target with a slim verifier is stepped by its TieredVerifier")

    def commit(self, handle: TieredHandle, nodes: Sequence[int]) -> NoReturn:
        raise TypeError("a target with a slim verifier is committed to by its TieredVerifier")

    def _beside(self, full: CacheHandle, make: Callable[[], CacheHandle]) -> CacheHandle:
        """Return the slim verifier's sequence; close the target's where it cannot be opened."""
        try:
            return make()
        except BaseException:
            self.full.close(full)
            raise
