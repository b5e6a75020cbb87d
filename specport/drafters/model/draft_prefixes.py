"""The prefix cache of a draft model: which contexts may begin with what it holds, and what is given to it."""

from __future__ import annotations

from collections.abc import Sequence

from specport.core.ports import CacheHandle, DraftRequest, Model
from specport.core.prefix_cache import PrefixCache

_AT_ONCE = 32  # tokens that are given to the cache together, at least


class DraftPrefixes:
    """Begin a draft's caches with known blocks, only where it would read a context from its first token.

    So drafts are those that it makes without a prefix cache, but for rounding: a draft may round by how
    tokens are split over steps. It could then sample other tokens behind known ones, and a seed would give
    another text, so the contexts of texts with a seed are read.

    prefixes: of the model; None = all contexts are read.
    window:   maximum number of context tokens that the draft reads at once.
    """

    def __init__(self, model: Model, prefixes: PrefixCache | None, window: int) -> None:
        self._prefixes, self._window = prefixes, window
        self._most = model.max_context

    def known(self, request: DraftRequest) -> int:
        """Return how many tokens of a context need not be read."""
        prefixes = self._usable(request)
        return prefixes.known(request.context[:-1]) if prefixes is not None else 0

    def open(self, request: DraftRequest, capacity: int) -> CacheHandle | None:
        """Return a new cache that begins with known tokens of a context; None where there are none."""
        prefixes = self._usable(request)
        return prefixes.open(request.context[:-1], capacity) if prefixes is not None else None

    def share(self, handle: CacheHandle, context: Sequence[int], num_shared: int) -> int:
        """Keep the context's tokens in a cache that begins with them; return how many were kept so far."""
        length = min(handle.length, len(context))
        if self._prefixes is None or length < num_shared + _AT_ONCE:
            return num_shared
        self._prefixes.keep(handle, context[:length])
        return length

    def make_room(self, handle: CacheHandle | None, wanted: int) -> None:
        """Free room for so many tokens that kept blocks take."""
        if self._prefixes is not None:
            self._prefixes.make_room(handle, wanted)

    def _usable(self, request: DraftRequest) -> PrefixCache | None:
        """Return the prefix cache where this context may begin with blocks of it."""
        length = len(request.context)
        whole = length <= self._window and length + request.plan.max_nodes <= self._most
        return self._prefixes if whole and not request.sampler.params.seeded else None
