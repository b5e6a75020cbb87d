"""Drafter with a model that was trained to draft several tokens in one pass (PARD, arXiv 2504.18583).

The model reads the new tokens of the text, then MASK in place of each token that is not drafted yet. The
logits of the last token and of each MASK are the drafts. Only the text's tokens stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specport.core.planning.passes import ParallelPasses
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Array, DraftRequest, Model, Plan
from specport.core.prefix_cache import PrefixCache
from specport.drafters.model.drafter import ReadingDrafter
from specport.drafters.model.expand import Expansion, expand
from specport.drafters.model.head import DraftHead
from specport.drafters.model.kv_cache import DraftCache
from specport.models.kinds.bigrams import Bigrams


class ParallelDrafter(ReadingDrafter):
    """Draft up to `parallel` tokens with one pass of a draft model that has its own cache.

    Every token is chosen from the distribution at its depth. The model's depends on the text alone, not on
    the tokens drafted before it; with `bigrams` they are ranked by the token before. A stop rule shortens the
    draft, not the pass.

    target_vocab, token_map: as for `DraftHead`; window, prefixes: as for `DraftCache`.
    mask_token:   id of MASK. It and higher ids are never drafted.
    temperatures: [parallel] divisors of the (ranked) logits at depth 1, 2, ...
    bigrams:      what is added to logits behind a drafted token; None = nothing.
    costs:        as for `ParallelPasses`.
    """

    def __init__(
        self,
        model: Model,
        target_vocab: int,
        mask_token: int,
        temperatures: Sequence[float],
        token_map: Sequence[int] | None = None,
        *,
        window: int = 256,
        prefixes: PrefixCache | None = None,
        bigrams: Bigrams | None = None,
        costs: StepCosts | None = None,
        name: str = "model",
    ) -> None:
        head = DraftHead(min(target_vocab, mask_token), token_map)
        self._cache = DraftCache(model, head, window, prefixes)
        super().__init__(self._cache, name)
        self._mask_token, self._temperatures = mask_token, tuple(temperatures)
        self._bigrams, self._passes = bigrams, ParallelPasses(len(self._temperatures), costs)

    @property
    def parallel(self) -> ParallelPasses:
        return self._passes

    def _allowed(self, request: DraftRequest) -> DraftRequest:
        """Return the request with its branches: the draft model itself is never stepped with a tree."""
        return request

    def _grow(self, trees: list[Expansion]) -> None:
        trees = [tree for tree in trees if tree.request.plan.depth > 0]
        if not trees:
            return
        tails = [[self._mask_token] * self._num_masks(tree.request) for tree in trees]
        # A pass needs room for its tail, which may be longer than the draft.
        asked = [
            replace(tree.request, plan=Plan(1 + len(tail))) for tree, tail in zip(trees, tails, strict=True)
        ]
        levels = self._cache.read(asked, tails)
        for tree, rows in zip(trees, levels, strict=True):  # without rows where there was no room
            head = self._cache.head(tree.request.key)
            for row, temperature in zip(rows, self._temperatures, strict=False):
                if tree.done:
                    break
                ranked = self._ranked(row, tree, head)
                expand(tree, [row if temperature == 1.0 else row / temperature for row in ranked], head)

    def _num_masks(self, request: DraftRequest) -> int:
        """Return the number of MASKs of a pass: more than are drafted where that keeps the pass's width."""
        behind = self._cache.behind(request)
        depth = min(request.plan.depth, self._passes.depth)
        return self._passes.width(behind, depth, len(request.context)) - behind

    def _ranked(self, row: Array, tree: Expansion, head: DraftHead) -> list[Array]:
        """Return the logits behind each node of the frontier: those of the model, ranked by its token.

        The model has read the root token, so that drafts behind it are not ranked.
        """
        if self._bigrams is None or not tree.num_levels:
            return [row] * len(tree.frontier)
        return [head.raised(row, *self._bigrams.behind(tree.tokens[node])) for node in tree.frontier]
