"""A bounded history of earlier texts for suffix decoding; the oldest are dropped. Knows token ids only."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from specport.drafters.retrieval.suffix_index import GAP, Ints, SuffixIndex

MAX_TOKENS = 1_000_000  # takes 12 MB, and a quarter of a second to sort
_KEPT_SHARE = 0.75  # share that is kept when the oldest are dropped, so that dropping is rare


class Store(Protocol):
    """Keep texts beyond this process."""

    def add(self, tokens: Ints) -> list[Ints]:
        """Store a text; return it and the texts that other processes added since the last call, in order."""
        ...


class History:
    """Hold texts in the order in which they were added, in one index.

    texts:      initial texts, oldest first.
    max_tokens: limit beyond which the oldest texts are dropped.
    store:      also keeps added texts; None = this process only.
    learn:      False = added texts are ignored.
    """

    def __init__(
        self,
        texts: Sequence[Ints] = (),
        *,
        max_tokens: int = MAX_TOKENS,
        store: Store | None = None,
        learn: bool = True,
    ) -> None:
        self._learn = learn
        self._max_tokens = max_tokens
        self._store = store
        self._texts: deque[Ints] = deque()
        self._num_tokens = 0
        self.index = SuffixIndex()
        self._extend(texts)

    def add(self, tokens: Sequence[int]) -> None:
        """Add a text; ignore one of a single token, or one that is larger than the history."""
        text = np.asarray(tokens, dtype=np.int32)
        if self._learn and 1 < len(text) <= self._max_tokens:
            self._extend([text] if self._store is None else self._store.add(text))

    def forget(self) -> None:
        """Drop all texts, as if none had been added. A store keeps its own."""
        self._texts.clear()
        self._num_tokens, self.index = 0, SuffixIndex()

    def _extend(self, texts: Sequence[Ints]) -> None:
        self._texts.extend(texts)
        self._num_tokens += sum(map(len, texts))
        if self._num_tokens <= self._max_tokens:
            self.index.extend(_joined(texts))
            return
        while self._num_tokens > self._max_tokens * _KEPT_SHARE and len(self._texts) > 1:
            self._num_tokens -= len(self._texts.popleft())
        self.index = SuffixIndex(_joined(self._texts))


def _joined(texts: Sequence[Ints] | deque[Ints]) -> Ints:
    """Return the texts joined, with a GAP after each."""
    gap = np.array([GAP], dtype=np.int32)
    return np.concatenate([piece for text in texts for piece in (text, gap)] or [gap[:0]])
