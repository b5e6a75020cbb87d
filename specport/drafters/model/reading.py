"""The `Reading` port: what reads contexts and scores drafted nodes for a model drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specport.core.ports import Array, DraftRequest
from specport.core.tree import TokenTree
from specport.drafters.model.head import DraftHead


@dataclass(frozen=True)
class Level:
    """Hold nodes of one sequence to score: a tree below the sequence's cached tokens.

    kept:  path of the tree that stays in the cache.
    asked: nodes whose logits are returned.
    """

    key: int
    tree: TokenTree
    kept: Sequence[int]
    asked: Sequence[int]


class Reading(Protocol):
    """Read contexts and score drafts: a draft model with its own cache, or the target's first layers."""

    @property
    def batch(self) -> bool:
        """Return whether several requests may be read in one call."""
        ...

    @property
    def tree(self) -> bool:
        """Return whether rows of `score` may branch."""
        ...

    def fits(self, request: DraftRequest) -> bool:
        """Return whether the model's context is long enough for the request's plan."""
        ...

    def behind(self, request: DraftRequest) -> int:
        """Return how many tokens to read before the first draft token; 1 = the root token only."""
        ...

    def head(self, key: int) -> DraftHead:
        """Return the head that maps the columns of this sequence's logits, as of its last `catch_up`."""
        ...

    def catch_up(self, requests: Sequence[DraftRequest]) -> list[Array | None]:
        """Read each context to its end; return the logits [columns] after each root token.

        None for a sequence for which the cache has no room.
        """
        ...

    def chains(self, requests: Sequence[DraftRequest]) -> list[list[int]] | None:
        """Read each context and draft a greedy chain of its plan's depth, all in one call of the model.

        None where the model cannot; no sequence has changed then.
        """
        ...

    def score(self, rows: Sequence[Level]) -> list[list[Array]]:
        """Return the logits [columns] after the asked nodes of each row.

        Empty for a sequence for which the cache has no room.
        """
        ...

    def forget(self, key: int) -> None:
        """Free what is held for a sequence that has ended."""
        ...

    def rewind(self, key: int, length: int) -> None:
        """Discard what was read from position `length` on: the context has changed there."""
        ...
