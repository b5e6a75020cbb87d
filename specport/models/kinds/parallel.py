"""What a draft's manifest says of drafting several tokens in one pass: plain data, checked when made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 16
_MOST_TOKENS = 1 << 24  # larger than any vocabulary
_COLDEST, _HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Parallel:
    """Hold how a draft model drafts in parallel (PARD, arXiv 2504.18583).

    depth:         tokens of one pass: behind the new tokens of the text it reads depth - 1 MASKs.
    mask_token_id: id of MASK, higher than all ids of texts; this id and higher ones are never drafted.
    temperatures:  [depth] divisors of the logits at depth 1, 2, ..., which make the probabilities honest.
    bigrams:       whether the bundle has pairs of tokens by which drafts are ranked (`bigrams.py`).

    Raises ValueError for values out of range, and TypeError for others than numbers.
    """

    depth: int
    mask_token_id: int
    temperatures: tuple[float, ...]
    bigrams: bool = False

    def __post_init__(self) -> None:
        for value in (self.depth, self.mask_token_id):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{value!r} is not a whole number")
        if not isinstance(self.bigrams, bool):
            raise TypeError(f"{self.bigrams!r} is neither true nor false")
        if not 1 <= self.depth <= MAX_DEPTH:
            raise ValueError(f"a depth of {self.depth} is not from 1 to {MAX_DEPTH}")
        if not 1 <= self.mask_token_id < _MOST_TOKENS:
            raise ValueError(f"{self.mask_token_id} is no id of a MASK")
        if len(self.temperatures) != self.depth:
            raise ValueError(f"{len(self.temperatures)} temperatures for {self.depth} depths")
        if not all(math.isfinite(t) and _COLDEST <= t <= _HOTTEST for t in self.temperatures):
            raise ValueError(f"{self.temperatures} are not temperatures")

    @classmethod
    def of(cls, table: Mapping[str, Any] | None, head: Sequence[int] | None) -> Parallel | None:
        """Return what a manifest says; None where it says nothing.

        head: ids of the draft's cut head, which must not have MASK; None = all.
        Raises KeyError, TypeError or ValueError for an invalid table.
        """
        if table is None:
            return None
        temperatures = tuple(float(t) for t in table["temperatures"])
        found = cls(table["depth"], table["mask_token_id"], temperatures, table.get("bigrams", False))
        found.check_head(0 if head is None else 1 + max(head, default=-1))
        return found

    def check_head(self, end: int) -> None:
        """Raise ValueError where a cut head, whose ids are below `end`, has MASK or ids above it."""
        if end > self.mask_token_id:
            raise ValueError(f"the head has MASK, {self.mask_token_id}, or ids above it")
