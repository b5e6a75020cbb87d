"""Constraints: which tokens may follow a text, such as those of a grammar.

A constraint is evaluated for every candidate prefix of a drafted tree, as logits processors are. Target and
drafts are held to it, so the text has the target's law, masked and normalized at each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array
from numpy.typing import NDArray

from specport.core.arrays import Array
from specport.core.sampling.processors import Prefix

_FEW = 4096  # allowed tokens up to which they are picked, instead of all others being masked
Mask = NDArray[np.uint8]  # [vocabulary / 8] bits, the lowest first: whether each token may follow


@dataclass(frozen=True)
class Continuation:
    """Hold tokens that probably follow a prefix. The first `certain` of them are the only allowed ones."""

    tokens: tuple[int, ...] = ()
    certain: int = 0


class Constraint(Protocol):
    """Say which tokens may follow a text. It belongs to one sequence. Not thread-safe.

    Prefixes are the tokens of prompt and text. Their base is append-only, as for `Prefix`.
    """

    def mask(self, prefix: Prefix) -> Mask | None:
        """Return the tokens that may follow; those beyond the mask may not.

        None where the prefix breaks the constraint itself, so that it is never committed.
        """
        ...

    def forced(self, prefix: Prefix) -> Continuation:
        """Return the tokens that the constraint leaves little or no choice about; mostly none."""
        ...

    def complete(self, tokens: Sequence[int]) -> bool:
        """Return whether nothing but the end may follow the committed tokens.

        Raises SpecportError where the constraint can no longer be evaluated.
        """
        ...


def allows(mask: Mask | None, token: int) -> bool:
    """Return whether a token may follow. None = the prefix itself is not allowed: nothing may."""
    return mask is not None and token >> 3 < len(mask) and bool(mask[token >> 3] >> (token & 7) & 1)


def masked(logits: Array, mask: Mask | None) -> Array:
    """Return the [vocab] logits with -inf at all tokens that may not follow; unchanged where none may.

    None may follow behind the end of a text, or behind a prefix that is not allowed: what is chosen there is
    never committed.

    A draft's cut head may lack all allowed tokens. They all get the logit 0 then: any distribution that
    keeps to the constraint will do for a draft.
    """
    if mask is None:
        return logits
    xp, vocab = array_namespace(logits), int(logits.shape[0])
    bits = np.unpackbits(mask[: vocab // 8 + 1], count=vocab, bitorder="little")
    ids = np.flatnonzero(bits)
    if not len(ids):
        return logits
    if is_numpy_array(logits) and len(ids) <= _FEW:
        out = np.full_like(logits, -np.inf)
        picked = logits[ids]
        out[ids] = picked if picked.max() > -np.inf else 0.0
        return out
    allowed = xp.asarray(bits.astype(np.bool_), device=device(logits))
    out = xp.where(allowed, logits, -xp.inf)
    lacking = xp.max(out) == -xp.inf
    if is_numpy_array(logits) and not lacking:  # elsewhere, to look at it would wait for the device
        return out
    return xp.where(allowed & lacking, 0.0, out)
