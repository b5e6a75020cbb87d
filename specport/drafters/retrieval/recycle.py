"""Token recycling (arXiv 2408.08696): draft the successors that the target recently found likely.

A table holds for every token its likeliest successors when the target last scored it. Rejected nodes are
scored too, so every row of a verify step is used. The draft is a static tree of ranks that is filled from the
table, starting at the root token. It needs no model and no training and, unlike n-grams, always has a
proposal. It uses one token of context only, so its paths are short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from specport.core.ports import DraftRequest, Needs, Outcome
from specport.core.tree import TokenTree
from specport.core.tree_builder import TreeBuilder
from specport.drafters.text_drafter import TextDrafter

SUCCESSORS = 8  # kept per token; the paper's value
MAX_DEPTH = 6  # of the paper's template; deeper nodes are hardly ever accepted
# Assumed probability that the successor of each rank comes next; it shapes the template and is a node's
# confidence. The first two lie in separate bins of `acceptance_rates.EDGES`, so a planner learns their worth.
RANK_PROBABILITIES = (0.45, 0.15, 0.08, 0.05, 0.035, 0.025, 0.02, 0.015)
_WARMED = 4096  # tokens at the end of a prompt that fill rows which the target has not filled


class SuccessorTable:
    """Map each token to its likeliest successors, likeliest first. Takes vocab x k ids of 32 bits.

    The system provides zeroed memory page by page as rows are written. So ids are stored plus one, and 0 is
    an empty entry.
    """

    def __init__(self, vocab: int, k: int = SUCCESSORS) -> None:
        self._rows: NDArray[np.int32] = np.zeros((vocab, k), dtype=np.int32)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def row(self, token: int) -> list[int]:
        """Return the known successors of a token."""
        return [kept - 1 for kept in self._rows[token].tolist() if kept]

    def write(self, tokens: Sequence[int], top: NDArray[np.int64]) -> None:
        """Replace rows. top: [n, k or more] successors of each token; a token's last row counts."""
        k = self._rows.shape[1]
        self._rows[list(tokens), : top.shape[1]] = top[:, :k] + 1

    def warm(self, text: Sequence[int]) -> None:
        """Fill the empty rows of this text's tokens with their successors in the text, the latest first."""
        followed: dict[int, dict[int, None]] = {}
        for token, successor in reversed([*pairwise(text[-_WARMED:])]):
            followed.setdefault(token, {})[successor] = None
        for token, successors in followed.items():
            if not self._rows[token, 0]:
                kept = [successor + 1 for successor in [*successors][: self._rows.shape[1]]]
                self._rows[token, : len(kept)] = kept


class RecycleDrafter(TextDrafter):
    """Propose the root token's successors and their successors; chains where the plan has no branches.

    vocab:     width of the target's logits.
    k:         successors per token.
    branching: whether to draft trees also where the plan has no branches; for a planner of a target that
               verifies trees.

    Sequences share a table, so that later texts profit. A text that is sampled with a seed must be
    repeatable, so it has its own table until it ends.

    Raises ValueError for a k outside 1 to len(RANK_PROBABILITIES).
    """

    name = "recycle"
    # Acceptance by bin of confidence; here a bin is a rank or several, from 0.05 to 0.45.
    prior = (0.04, 0.15, 0.2, 0.3, 0.45, 0.55, 0.65, 0.75, 0.85, 0.92, 0.96, 0.98)

    def __init__(self, vocab: int, k: int = SUCCESSORS, *, branching: bool = False) -> None:
        if not 1 <= k <= len(RANK_PROBABILITIES):
            raise ValueError(f"{k} successors of a token; it must be 1 to {len(RANK_PROBABILITIES)}")
        self.needs = Needs(top_k=k)
        self._num_successors = k
        self._vocab = vocab
        self._branching = branching
        self._shared: SuccessorTable | None = None
        self._own: dict[int, SuccessorTable] = {}  # of sequences with a seed
        self._warmed: set[int] = set()

    def _propose(self, request: DraftRequest) -> TokenTree:
        return self.below(request, ())

    def below(self, request: DraftRequest, path: Sequence[int]) -> TokenTree:
        """Return the proposal for the context followed by the drafted tokens `path`."""
        plan, context = request.plan, request.context
        if plan.depth < 1 or not context:
            return TokenTree()
        table = self._table(request)
        branching = self._branching or any(n > 1 for n in plan.branches)
        depth = min(plan.depth, MAX_DEPTH)
        slots = (
            template(plan.max_nodes, depth, self._num_successors) if branching else template(depth, depth, 1)
        )
        return self._fill(table, slots, path[-1] if path else context[-1])

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.top is None:
                continue
            # A token may occur in a tree more than once: the accepted path is written last.
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
                self._own[request.key] = SuccessorTable(self._vocab, self._num_successors)
            table = self._own[request.key]
        if request.key not in self._warmed:
            self._warmed.add(request.key)
            table.warm(request.context)
        return table

    def _shared_table(self) -> SuccessorTable:
        if self._shared is None:
            self._shared = SuccessorTable(self._vocab, self._num_successors)
        return self._shared

    def _fill(self, table: SuccessorTable, slots: Iterable[tuple[int, int]], root: int) -> TokenTree:
        """Return the template filled from the table; a slot without a token is dropped with all below it."""
        tree = TreeBuilder()
        places = {-1: -1}  # slot -> node
        rows: dict[int, list[int]] = {}
        for slot, (above, rank) in enumerate(slots):
            if above not in places:
                continue
            parent = places[above]
            token = tree.tokens[parent] if parent >= 0 else root
            row = rows.get(token)
            if row is None:
                row = rows[token] = table.row(token)
            if rank < len(row):
                places[slot] = tree.add(parent, row[rank], RANK_PROBABILITIES[rank])
        return tree.tree(self.name)


@cache
def template(num_nodes: int, depth: int, k: int) -> tuple[tuple[int, int], ...]:
    """Return [num_nodes or fewer] (parent slot, rank): the likeliest tree by RANK_PROBABILITIES.

    Slots are sorted by falling path probability, so the first n are the template of n nodes. The path of
    first ranks is the deepest and later ranks have fewer descendants, as in the paper's template.
    """
    slots: list[tuple[int, int]] = []
    heap: list[tuple[float, int, int, int]] = [(-RANK_PROBABILITIES[rank], -1, rank, 1) for rank in range(k)]
    heapify(heap)
    while heap and len(slots) < num_nodes:
        probability, parent, rank, level = heappop(heap)
        slots.append((parent, rank))
        if level < depth:
            for below in range(k):
                heappush(heap, (probability * RANK_PROBABILITIES[below], len(slots) - 1, below, level + 1))
    return tuple(slots)
