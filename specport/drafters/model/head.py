"""The language-model head of a draft: map its columns to target ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from specport.core.ports import Array


class DraftHead:
    """Map the columns of a draft's logits to the target's ids.

    target_vocab: width of the target's logits; further columns of a wider draft are never drafted.
    token_map:    [draft vocab] target ids of the columns of a cut head; None for a whole head.
    """

    def __init__(self, target_vocab: int, token_map: Sequence[int] | NDArray[np.int64] | None = None) -> None:
        self._target_vocab = target_vocab
        self._map = None if token_map is None else np.asarray(token_map, dtype=np.int64)

    @cached_property
    def _columns(self) -> NDArray[np.int64]:
        """Return [target vocab] the column of each target id; missing ids point behind the last column."""
        assert self._map is not None
        columns = np.full(self._target_vocab, self._map.size, dtype=np.int64)
        columns[self._map] = np.arange(self._map.size)
        return columns

    @property
    def columns(self) -> int | None:
        """Return the number of leading columns of the draft's logits that are used; None = all."""
        return self._target_vocab if self._map is None else None

    def lacks(self, token: int) -> bool:
        """Return whether a cut head has no column for this target id."""
        if self._map is None or not 0 <= token < self._target_vocab:
            return False
        return bool(self._columns[token] == self._map.size)

    def with_ids(self, tokens: Sequence[int]) -> DraftHead:
        """Return a cut head with columns for these tokens appended."""
        assert self._map is not None
        return DraftHead(self._target_vocab, np.concatenate([self._map, tokens]))

    def own(self, logits: Array) -> Array:
        """Return the draft's logits [columns] without columns that the target does not have."""
        return logits[: self._target_vocab] if self._map is None else logits

    def full(self, logits: Array) -> Array:
        """Return logits [target vocab]: a cut head's columns at their ids, -inf at all other ids."""
        if self._map is None:
            return self.own(logits)
        xp = array_namespace(logits)
        where = device(logits)
        absent = xp.full((1,), -xp.inf, dtype=logits.dtype, device=where)
        return xp.take(xp.concat([logits, absent]), xp.asarray(self._columns, device=where))

    def ids(self, columns: Sequence[int]) -> list[int]:
        """Return the target ids of columns of `own`."""
        return [*columns] if self._map is None else [int(self._map[column]) for column in columns]

    def raised(self, logits: Array, tokens: NDArray[np.int32], gains: NDArray[np.float32]) -> Array:
        """Return the draft's logits [columns] with these added to those of some target ids.

        Ids that the draft or the target does not have are ignored.
        """
        ours = tokens < self._target_vocab
        columns = tokens[ours] if self._map is None else self._columns[tokens[ours]]
        there = columns < logits.shape[0]
        more = np.zeros(logits.shape[0], dtype=np.float32)
        more[columns[there]] = gains[ours][there]
        xp = array_namespace(logits)
        return logits + xp.astype(xp.asarray(more, device=device(logits)), logits.dtype)
