"""The first drafter that has something to propose wins: "n-gram first, else model"."""

from __future__ import annotations

from collections.abc import Sequence

from specport.core.ports import Drafter, DraftRequest, Outcome, top_k_of
from specport.core.tree import TokenTree


class Cascade:
    """Asks drafters in order; each sees only the requests that all before it left empty."""

    def __init__(self, *drafters: Drafter) -> None:
        self._drafters = drafters
        self.top_k = top_k_of(*drafters)

    @property
    def name(self) -> str:
        return "|".join(dict.fromkeys(drafter.name for drafter in self._drafters))

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = [TokenTree()] * len(requests)
        for drafter in self._drafters:
            open_ones = [i for i, tree in enumerate(trees) if not len(tree)]
            if not open_ones:
                break
            proposed = drafter.propose([requests[i] for i in open_ones])
            for i, tree in zip(open_ones, proposed, strict=True):
                trees[i] = tree
        return trees

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for drafter in self._drafters:
            drafter.observe(outcomes)

    def forget(self, key: int) -> None:
        for drafter in self._drafters:
            drafter.forget(key)
