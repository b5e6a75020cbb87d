"""Logits processors: change the logits of the next token before it is chosen.

A processor is a pure function of logits and prefix, so it can be evaluated for every candidate prefix of a
drafted tree. Target and draft use the same processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, overload

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array
from numpy.typing import NDArray

from specport.core.arrays import Array


@dataclass(frozen=True)
class Prefix(Sequence[int]):
    """Concatenate `base` and `path` without copying `base`.

    base is append-only while a sampler uses it: processors read each of its tokens only once.
    """

    base: Sequence[int]
    path: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.base) + len(self.path)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [*self.base, *self.path][index]
        n = len(self.base)
        if index < 0:
            index += len(self)
        if index < 0:
            raise IndexError("prefix index out of range")
        return self.base[index] if index < n else self.path[index - n]


@dataclass
class SeenTokens:
    """Track which tokens occur in a prefix. Reads each token of an append-only base only once."""

    _base: Sequence[int] = ()
    _counted: int = 0
    _mask: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def mask(self, prefix: Sequence[int], vocab: int) -> NDArray[np.bool_]:
        """Return [vocab], True at every token of `prefix`. The caller must not write to it."""
        base, path = (prefix.base, prefix.path) if isinstance(prefix, Prefix) else (prefix, ())
        if base is not self._base or len(base) < self._counted or vocab > len(self._mask):
            # Draft and target may differ in vocabulary size: the wider mask serves both.
            self._base, self._counted = base, 0
            self._mask = np.zeros(max(vocab, len(self._mask)), dtype=np.bool_)
        _mark(self._mask, base[self._counted :])
        self._counted = len(base)
        mask = self._mask[:vocab]
        if path:
            mask = mask.copy()
            _mark(mask, path)
        return mask


def _mark(mask: NDArray[np.bool_], tokens: Sequence[int]) -> None:
    # A token beyond this model's vocabulary has no logit.
    ids = np.asarray(tokens, dtype=np.int64)
    mask[ids[ids < len(mask)]] = True


class LogitsProcessor(Protocol):
    """Change the logits of the next token."""

    @property
    def is_identity(self) -> bool:
        """Return whether it changes nothing for any prefix, so that it can be skipped."""
        ...

    def __call__(self, logits: Array, prefix: Sequence[int]) -> Array:
        """Return the changed [vocab] logits; do not modify the argument.

        prefix: every token before this position, prompt included.
        """
        ...


class RepetitionPenalty:
    """Make every token of the prefix less likely (CTRL, arXiv 1909.05858, as in transformers).

    Positive logits are divided by the penalty, negative ones are multiplied by it.
    """

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty
        self._seen = SeenTokens()

    @property
    def is_identity(self) -> bool:
        return self._penalty == 1.0

    def __call__(self, logits: Array, prefix: Sequence[int]) -> Array:
        penalty = self._penalty
        xp = array_namespace(logits)
        logits = as_float(logits)
        seen = self._seen.mask(prefix, logits.shape[0])
        if is_numpy_array(logits):
            # Updating only the seen tokens is 10 times as fast as three passes over the vocabulary.
            ids = np.flatnonzero(seen)
            out, values = logits.copy(), logits[ids]
            out[ids] = np.where(values < 0, values * penalty, values / penalty)
            return out
        mask = xp.asarray(seen, device=device(logits))
        return xp.where(mask, xp.where(logits < 0, logits * penalty, logits / penalty), logits)


def as_float(logits: Array) -> Array:
    """Return the logits in float32, or unchanged in float64: half precision is too coarse."""
    xp = array_namespace(logits)
    return logits if logits.dtype in (xp.float32, xp.float64) else xp.astype(logits, xp.float32)
