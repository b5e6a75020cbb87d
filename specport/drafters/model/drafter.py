"""Drafters with a language model: a smaller model of the same tokenizer, or the target's own first layers.

They know token ids and a `Reading`, which reads contexts and scores drafts; no runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specport.core.estimates.acceptance_rates import CENTRES
from specport.core.planning.passes import ParallelPasses
from specport.core.ports import Array, DraftRequest, Model, Needs, Outcome, Prefilled
from specport.core.prefix_cache import PrefixCache
from specport.core.tree import TokenTree
from specport.drafters.model.early_exit import ExitCache
from specport.drafters.model.expand import Expansion, expand
from specport.drafters.model.head import DraftHead
from specport.drafters.model.kv_cache import DraftCache
from specport.drafters.model.reading import Level, Reading


class ReadingDrafter:
    """Draft chains, or trees where the plan has branches and the reading allows them.

    Greedy parameters draft the likeliest tokens; others sample, siblings without replacement. Nothing is
    proposed for a sequence for which the draft's cache has no room.
    """

    needs = Needs()

    @property
    def parallel(self) -> ParallelPasses | None:
        """Return as `PlannedDrafter.parallel`."""
        return None

    def __init__(self, reading: Reading, name: str) -> None:
        self.name = name
        self._reading = reading

    @property
    def prior(self) -> Sequence[float]:
        """Return the centres of the bins: draft models are well calibrated on their target's texts."""
        return CENTRES

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = [Expansion(request=self._allowed(request)) for request in requests]
        fitting = [tree for tree in trees if self._reading.fits(tree.request)]
        width = max(1, len(fitting)) if self._reading.batch else 1
        for start in range(0, len(fitting), width):
            self._grow(fitting[start : start + width])
        return [tree.tree(self.name, replacement=False) for tree in trees]

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        """Do nothing: the context is read at the next proposal."""

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Do nothing: the next proposal compares the cache with the context."""

    def forget(self, key: int) -> None:
        self._reading.forget(key)

    def rewind(self, key: int, length: int) -> None:
        """Do as `Reading.rewind`."""
        self._reading.rewind(key, length)

    def behind(self, request: DraftRequest) -> int:
        """Return as `Reading.behind`."""
        return self._reading.behind(request)

    def _allowed(self, request: DraftRequest) -> DraftRequest:
        if not request.plan.branches or self._reading.tree:
            return request
        return replace(request, plan=replace(request.plan, branches=()))

    def _grow(self, trees: list[Expansion]) -> None:
        """Draft level by level until every tree is done; greedy chains in one call where the model can."""
        if all(tree.likeliest_chain for tree in trees):
            chains = self._reading.chains([tree.request for tree in trees])
            if chains is not None:
                for tree, chain in zip(trees, chains, strict=True):
                    tree.add_chain(chain)
                return
        first = self._reading.catch_up([tree.request for tree in trees])
        logits = [[] if row is None else [row] for row in first]
        while trees:
            growing = []
            for tree, rows in zip(trees, logits, strict=True):
                if rows:  # empty where there was no room
                    expand(tree, rows, self._reading.head(tree.request.key))
                    growing.append(tree)
            trees = [tree for tree in growing if not tree.done]
            logits = self._score(trees) if trees else []

    def _score(self, trees: Sequence[Expansion]) -> list[list[Array]]:
        """Return the logits [columns] behind each frontier node of each tree."""
        # A step's mask covers new tokens only, so each level steps the whole tree again. A chain commits its
        # tokens one by one.
        rows = []
        for tree in trees:
            key = tree.request.key
            if tree.request.plan.branches:
                whole = TokenTree(tuple(tree.tokens), tuple(tree.parents))
                rows.append(Level(key, whole, (), tree.frontier))
            else:
                rows.append(Level(key, TokenTree.chain(tree.tokens[-1:]), (0,), (0,)))
        return self._reading.score(rows)


class ModelDrafter(ReadingDrafter):
    """Draft with a draft model that has its own cache.

    target_vocab, token_map: as for `DraftHead`; window, prefixes: as for `DraftCache`.
    """

    def __init__(
        self,
        model: Model,
        target_vocab: int,
        token_map: Sequence[int] | None = None,
        *,
        window: int = 256,
        prefixes: PrefixCache | None = None,
        name: str = "model",
    ) -> None:
        super().__init__(DraftCache(model, DraftHead(target_vocab, token_map), window, prefixes), name)


class EarlyExitDrafter(ReadingDrafter):
    """Draft with the first layers of the target itself; only for generations on the same model object.

    Raises ValueError for a target without an early exit.
    """

    def __init__(self, target: Model, *, name: str = "early-exit") -> None:
        super().__init__(ExitCache(target), name)
