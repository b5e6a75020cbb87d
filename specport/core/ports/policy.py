"""The policy port: choose which drafter drafts in a round, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specport.core.ports.drafter import DraftRequest, Needs, Outcome, Prefilled
from specport.core.tree import TokenTree


class Policy(Protocol):
    """Choose among drafters and decide how much each drafts. One instance serves all sequences of an engine.

    `DraftRequest.plan` and `max_nodes` bound each tree; the policy plans within these bounds.
    """

    @property
    def name(self) -> str:
        """Return the names of its drafters, joined by "|"."""
        ...

    @property
    def needs(self) -> Needs:
        """Return the union of its drafters' needs."""
        ...

    def draft(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """Return one tree for each request, in order; an empty tree where nothing is drafted."""
        ...

    def prefilled(self, events: Sequence[Prefilled]) -> None: ...

    def observe(self, outcomes: Sequence[Outcome]) -> None: ...

    def forget(self, key: int) -> None:
        """Free what is held for a sequence that has ended."""
        ...
