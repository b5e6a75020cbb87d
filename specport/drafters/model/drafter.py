"""A language model as drafter: a smaller one of the same tokenizer, or the target's own first layers.

Knows token ids, and what reads a context (`kv_cache.Reading`); no runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specport.core.model_kinds import EarlyExitModel
from specport.core.planning.acceptance_rates import CENTRES
from specport.core.ports import Array, DraftRequest, Model, Outcome
from specport.core.tree import TokenTree
from specport.drafters.model.early_exit import ExitCache
from specport.drafters.model.expand import DraftHead, Growth, expand
from specport.drafters.model.kv_cache import DraftCache, Level, Reading


class ReadingDrafter:
    """Drafts chains, or trees where the plan has branches and the reading allows them.

    Greedy parameters draft the likeliest tokens; others draw, siblings without replacement.
    """

    def __init__(self, reading: Reading, name: str) -> None:
        self.name = name
        self._reading = reading

    @property
    def prior(self) -> Sequence[float]:
        """Draft models are well calibrated on what their target writes: 0.9 is right 9 times in 10."""
        return CENTRES

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        growths = [Growth(self._allowed(request)) for request in requests]
        fitting = [growth for growth in growths if self._reading.fits(growth.request)]
        width = max(1, len(fitting)) if self._reading.batch else 1
        for start in range(0, len(fitting), width):
            self._grow(fitting[start : start + width])
        return [growth.tree(self.name) for growth in growths]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing to learn: the next proposal compares the cache with the context."""

    def forget(self, key: int) -> None:
        self._reading.forget(key)

    def rewind(self, key: int, length: int) -> None:
        """As `Reading.rewind`."""
        self._reading.rewind(key, length)

    def behind(self, request: DraftRequest) -> int:
        """As `Reading.behind`."""
        return self._reading.behind(request)

    def _allowed(self, request: DraftRequest) -> DraftRequest:
        if not request.plan.branches or self._reading.tree:
            return request
        return replace(request, plan=replace(request.plan, branches=()))

    def _grow(self, growths: list[Growth]) -> None:
        """Draft level by level until every tree has its depth or has stopped; at once where that will do."""
        if all(growth.likeliest_chain for growth in growths):
            chains = self._reading.chains([growth.request for growth in growths])
            if chains is not None:
                for growth, chain in zip(growths, chains, strict=True):
                    growth.become(chain)
                return
        logits = [[row] for row in self._reading.catch_up([growth.request for growth in growths])]
        while growths:
            for growth, rows in zip(growths, logits, strict=True):
                expand(growth, rows, self._reading.head(growth.request.key))
            growths = [growth for growth in growths if not growth.done]
            logits = self._score(growths) if growths else []

    def _score(self, growths: Sequence[Growth]) -> list[list[Array]]:
        """Logits [columns] behind each frontier node of each tree."""
        # A step's mask covers new tokens only, so a tree is stepped whole at each level. A chain's
        # tokens are kept as they come.
        rows = []
        for growth in growths:
            key = growth.request.key
            if growth.request.plan.branches:
                tree = TokenTree(tuple(growth.tokens), tuple(growth.parents))
                rows.append(Level(key, tree, (), growth.frontier))
            else:
                rows.append(Level(key, TokenTree.chain(growth.tokens[-1:]), (0,), (0,)))
        return self._reading.score(rows)


class ModelDrafter(ReadingDrafter):
    """A draft model with its own cache.

    target_vocab, token_map: as for `DraftHead`; window: as for `DraftCache`.
    """

    def __init__(
        self,
        model: Model,
        target_vocab: int,
        token_map: Sequence[int] | None = None,
        *,
        window: int = 256,
        name: str = "model",
    ) -> None:
        super().__init__(DraftCache(model, DraftHead(target_vocab, token_map), window), name)


class EarlyExitDrafter(ReadingDrafter):
    """The first layers of the target itself; only for generations on this very model."""

    def __init__(self, target: EarlyExitModel, *, name: str = "early-exit") -> None:
        super().__init__(ExitCache(target), name)
