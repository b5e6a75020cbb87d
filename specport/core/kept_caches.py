"""What ended sequences left for others: caches for later turns of a conversation, blocks for any text."""

from __future__ import annotations

from collections.abc import Sequence

from specport.core.ports import CacheHandle, Model
from specport.core.prefix_cache import PrefixCache
from specport.core.sequence import KeptCache


class KeptCaches:
    """Own the kept caches of one model that no sequence uses, for all schedulers that share the model.

    Under memory pressure any of these schedulers frees the least recently used one, whoever kept it, and then
    blocks of the prefix cache. Not thread-safe: the engines serialize the calls.

    prefixes: blocks of committed tokens that any sequence may begin with; None = no prefix cache.
    """

    def __init__(self, model: Model, prefixes: PrefixCache | None = None) -> None:
        self._model, self.prefixes = model, prefixes
        self.idle: list[KeptCache] = []  # least recently used first

    def keep(self, kept: KeptCache, handle: CacheHandle, tokens: Sequence[int]) -> None:
        """Store a cache that holds these tokens."""
        kept.handle, kept.tokens = handle, [*tokens]
        self.idle.append(kept)

    def take(self, kept: KeptCache) -> CacheHandle | None:
        """Return the cache for use by a sequence; None where there is none (any more)."""
        if kept in self.idle:
            self.idle.remove(kept)
        handle, kept.handle = kept.handle, None
        return handle

    def free(self, kept: KeptCache) -> bool:
        """Free the cache's memory; return False where it has none."""
        handle = self.take(kept)
        kept.tokens = []
        if handle is not None:
            self._model.close(handle)
        return handle is not None

    def outdate(self) -> None:
        """Free everything: the model's weights are about to change."""
        for kept in [*self.idle]:
            self.free(kept)
        if self.prefixes is not None:
            self.prefixes.outdate()

    def reclaim(self, spared: KeptCache | None = None) -> bool:
        """Free the least recently used cache, or blocks of the prefix cache; return False where none is left.

        Caches go first: what they share with the prefix cache stays known.

        spared: a cache that is not freed.
        """
        kept = next((kept for kept in self.idle if kept is not spared), None)
        if kept is not None and self.free(kept):
            return True
        return self.prefixes is not None and self.prefixes.reclaim()
