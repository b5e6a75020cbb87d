"""Token recycling (arXiv 2408.08696): draft what the target itself thought likely behind each token before.

A table holds, for every token, its likeliest successors when the target last scored it; what was drafted in
vain is scored too, so nothing of a verify step is thrown away. The draft is a static tree of ranks that is
filled from the table, beginning at the root token. Needs no model and no training and, unlike n-grams, always
has something to propose; it knows one token of context only, so its paths are short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from specport.core.ports import DraftRequest, Outcome
from specport.core.tree import TokenTree

SUCCESSORS = 8  # kept of a token; the paper's value
MAX_DEPTH = 6  # of the paper's template; behind it hardly anything is accepted
# Chance that the successor of a rank comes next: what shapes the template, and a node's confidence. Assumed;
# the first two lie in bins of `estimates.EDGES` of their own, so that a planner learns what they are worth.
RANK_CHANCES = (0.45, 0.15, 0.08, 0.05, 0.035, 0.025, 0.02, 0.015)
_WARMED = 4096  # tokens at the end of a prompt that fill rows which the target has not filled yet


class SuccessorTable:
    """Token -> its likeliest successors, likeliest first. vocab x k ids of 32 bits, whatever it is taught.

    The memory comes from the system zeroed, page by page as rows are written: so an id is kept one higher,
    and 0 is an empty place.
    """

    def __init__(self, vocab: int, k: int = SUCCESSORS) -> None:
        self._rows: NDArray[np.int32] = np.zeros((vocab, k), dtype=np.int32)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def row(self, token: int) -> list[int]:
        """The successors that are known."""
        return [kept - 1 for kept in self._rows[token].tolist() if kept]

    def write(self, tokens: Sequence[int], top: NDArray[np.int64]) -> None:
        """top: [n, k or more] successors of each token; the last entry of a token counts."""
        k = self._rows.shape[1]
        self._rows[list(tokens), : top.shape[1]] = top[:, :k] + 1

    def warm(self, text: Sequence[int]) -> None:
        """Give tokens without a row what followed them in this text, the latest first."""
        found: dict[int, dict[int, None]] = {}
        for token, successor in reversed([*pairwise(text[-_WARMED:])]):
            found.setdefault(token, {})[successor] = None
        for token, successors in found.items():
            if not self._rows[token, 0]:
                kept = [successor + 1 for successor in [*successors][: self._rows.shape[1]]]
                self._rows[token, : len(kept)] = kept


class RecycleDrafter:
    """Proposes successors of successors of the root token; chains where the plan has no branches.

    vocab:     width of the target's logits.
    branching: draft trees also where the plan names no branches; for a planner of a target that takes trees.

    Sequences share a table, which later texts profit from. A text that is sampled with a seed must come out
    twice the same, so it has a table of its own until it ends.
    """

    name = "recycle"
    # Acceptance by bin of confidence, which here is by rank, from 0.05 to 0.45.
    prior = (0.04, 0.15, 0.2, 0.3, 0.45, 0.55, 0.65, 0.75, 0.85, 0.92, 0.96, 0.98)

    def __init__(self, vocab: int, k: int = SUCCESSORS, *, branching: bool = False) -> None:
        if not 1 <= k <= len(RANK_CHANCES):
            raise ValueError(f"{k} successors of a token; it must be 1 to {len(RANK_CHANCES)}")
        self.top_k = k
        self._vocab = vocab
        self._branching = branching
        self._shared: SuccessorTable | None = None
        self._own: dict[int, SuccessorTable] = {}  # of sequences with a seed
        self._warmed: set[int] = set()

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self.below(request, ()) for request in requests]

    def below(self, request: DraftRequest, path: Sequence[int]) -> TokenTree:
        """What would be proposed if these drafted tokens stood behind the context."""
        plan, context = request.plan, request.context
        if plan.depth < 1 or not context:
            return TokenTree()
        table = self._table(request)
        branching = self._branching or any(n > 1 for n in plan.branches)
        depth = min(plan.depth, MAX_DEPTH)
        slots = template(plan.max_nodes, depth, self.top_k) if branching else template(depth, depth, 1)
        return self._fill(table, slots, path[-1] if path else context[-1])

    def behind(self, request: DraftRequest) -> int:
        """There is no model to feed."""
        return 0

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.top is None:
                continue
            # Tokens may stand in a tree more than once: what the text goes on from is written last.
            order = [
                *(node for node in range(len(outcome.tree)) if node not in outcome.path),
                -1,
                *outcome.path,
            ]
            tokens = [outcome.tree.tokens[node] if node >= 0 else outcome.root for node in order]
            table = self._own.get(outcome.key) or self._shared_table()
            table.write(tokens, outcome.top[[node + 1 for node in order]])

    def forget(self, key: int) -> None:
        self._own.pop(key, None)
        self._warmed.discard(key)

    def _table(self, request: DraftRequest) -> SuccessorTable:
        params = request.sampler.params
        if params.greedy or params.seed is None:
            table = self._shared_table()
        else:
            if request.key not in self._own:
                self._own[request.key] = SuccessorTable(self._vocab, self.top_k)
            table = self._own[request.key]
        if request.key not in self._warmed:
            self._warmed.add(request.key)
            table.warm(request.context)
        return table

    def _shared_table(self) -> SuccessorTable:
        if self._shared is None:
            self._shared = SuccessorTable(self._vocab, self.top_k)
        return self._shared

    def _fill(self, table: SuccessorTable, slots: Iterable[tuple[int, int]], root: int) -> TokenTree:
        """The template with the table's tokens; a slot without one falls out, and all below it."""
        tokens: list[int] = []
        parents: list[int] = []
        confidence: list[float] = []
        places = {-1: -1}  # slot -> node
        rows: dict[int, list[int]] = {}
        for slot, (above, rank) in enumerate(slots):
            if above not in places:
                continue
            parent = places[above]
            token = tokens[parent] if parent >= 0 else root
            row = rows.get(token)
            if row is None:
                row = rows[token] = table.row(token)
            if rank < len(row):
                places[slot] = len(tokens)
                tokens.append(row[rank])
                parents.append(parent)
                confidence.append(RANK_CHANCES[rank])
        return TokenTree(
            tuple(tokens),
            tuple(parents),
            confidence=tuple(confidence),
            sources=(self.name,) * len(tokens),
        )


@cache
def template(num_nodes: int, depth: int, k: int) -> tuple[tuple[int, int], ...]:
    """[num_nodes or fewer] (parent slot, rank): the likeliest tree of that many nodes by RANK_CHANCES.

    Slots are in falling order of their path's chance, so the first n are the template of n nodes. The path of
    first ranks runs deepest and later ranks have fewer descendants, as in the paper's template.
    """
    slots: list[tuple[int, int]] = []
    heap: list[tuple[float, int, int, int]] = [(-RANK_CHANCES[rank], -1, rank, 1) for rank in range(k)]
    heapify(heap)
    while heap and len(slots) < num_nodes:
        chance, parent, rank, level = heappop(heap)
        slots.append((parent, rank))
        if level < depth:
            for below in range(k):
                heappush(heap, (chance * RANK_CHANCES[below], len(slots) - 1, below, level + 1))
    return tuple(slots)
