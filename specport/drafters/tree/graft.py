"""Graft (arXiv 2605.20104): prune a draft model's dynamic tree where it is unsure, and fill it by retrieval.

A dense draft tree costs drafting time. Stopping early saves time but loses good candidates. Graft keeps the
number of verified nodes constant: nodes that pruning frees go to retrieved tokens, which cost almost nothing.
The tree is grown and re-ranked as in EAGLE-2 (arXiv 2406.16858). Every node is deterministic, since the tree
is cut by its content (see `core.verify.rules`); so sampling accepts a node with probability p, not p / q.

Retrieval does not run in a thread beside the draft model: it takes about 0.05 ms where a level of drafting
takes milliseconds, and the number of nodes to retrieve is known only after the checkpoints.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from specport.core.estimates.acceptance_rates import CENTRES, EDGES
from specport.core.ports import Drafted, DraftRequest, Needs, Outcome, PlannedDrafter, Prefilled
from specport.core.tree import TokenTree
from specport.drafters.model.expand import Expansion
from specport.drafters.tree.grafted_tree import GraftedTree
from specport.drafters.tree.level_proposer import LevelSource

BUDGET = 60  # nodes of EAGLE-2's tree
_LEVELS = 6  # each level expands a sixth of the budget


@dataclass(frozen=True)
class Checkpoint:
    """Stop drafting after this level if the best path's probability is below `threshold`.

    share: share of the budget that drafted nodes keep then.
    """

    level: int
    threshold: float
    share: float


@dataclass(frozen=True)
class Variant:
    """Divide a budget of nodes between drafting and retrieval.

    checkpoints: by level; the nodes that they free are retrieved.
    retrieved:   share of the budget that is always retrieved.
    tail:        whether to retrieve below the likeliest leaf instead of below the root token.
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    retrieved: float = 0.0
    tail: bool = False


# Levels and shares are the paper's (8, 24 and 40 of 60 nodes); its thresholds are not public. These are the
# defaults without calibration (see `graft_thresholds`).
CHECKPOINTS = (Checkpoint(1, 0.35, 8 / 60), Checkpoint(2, 0.25, 24 / 60), Checkpoint(6, 0.15, 40 / 60))
VARIANTS = {
    "dynamic": Variant(),  # EAGLE-2's tree, nothing retrieved
    "root": Variant(retrieved=20 / 60),  # Graft(ROOT): retrieval without pruning
    "tail": Variant(retrieved=20 / 60, tail=True),  # Graft(TAIL): the same at a leaf
    "graft": Variant(CHECKPOINTS),
}


@runtime_checkable
class Extends(Protocol):
    """Retrieve below tokens that are drafted but not committed."""

    def below(self, request: DraftRequest, path: Sequence[int]) -> TokenTree:
        """Return the proposal for the context followed by the drafted tokens `path`."""
        ...


@dataclass(frozen=True)
class DraftedRound:
    """Record one round for calibration.

    best:     [levels] probability of the best path at each drafted level.
    accepted: number of accepted tokens.
    tree:     the verified tree; a planner may have cut it.
    """

    best: tuple[float, ...]
    accepted: int
    tree: TokenTree = field(default_factory=TokenTree)


@dataclass
class _Round:
    """Hold a tree and its limits. share: share of the budget for drafted nodes."""

    tree: Expansion
    budget: int
    width: int
    chain: bool
    share: float
    best: list[float] = field(default_factory=list)

    @property
    def num_drafted(self) -> int:
        return max(1, round(self.budget * self.share))


def level_width(budget: int, depth: int) -> int:
    """Return the number of expanded nodes per level, which is also the number of children per node."""
    return max(2, round(budget / max(1, min(_LEVELS, depth))))


class GraftDrafter:
    """Grow a tree with a source of levels and graft retrieved nodes onto it.

    retrieval: drafters of deterministic nodes at negligible cost, asked in order until the budget is used.
    variant:   see VARIANTS.
    budget:    maximum number of nodes of a tree; a plan may allow fewer.
    branching: whether to grow trees also where the plan has no branches; for a planner of a target that
               verifies trees.
    record:    called with every verified round; for calibration.

    After each level the plan's stop rule judges the best path. A stopped draft keeps as many nodes as at the
    next checkpoint. The stop rule gets probabilities only, no `Drafted.top`.

    Raises ValueError where `variant` retrieves at a leaf and no retrieval implements `Extends`.
    """

    prior = CENTRES  # the confidence of retrieved nodes is converted, see `_graft`
    parallel = None

    def __init__(
        self,
        source: LevelSource,
        retrieval: Sequence[PlannedDrafter] = (),
        variant: Variant = VARIANTS["graft"],
        *,
        budget: int = BUDGET,
        branching: bool = False,
        record: Callable[[DraftedRound], None] | None = None,
    ) -> None:
        if variant.tail and not any(isinstance(drafter, Extends) for drafter in retrieval):
            raise ValueError("retrieval at a leaf needs a drafter that goes on from drafted tokens")
        self.name = f"graft({source.name})"
        self._source = source
        self._retrieval = tuple(retrieval) if variant.checkpoints or variant.retrieved else ()
        self._members: tuple[LevelSource | PlannedDrafter, ...] = (source, *self._retrieval)
        self.needs = Needs.of(*self._members)
        self.variant = variant
        self._budget = budget
        self._branching = branching
        self._record = record
        self._rounds: dict[int, _Round] = {}  # rounds under verification

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        rounds = [self._begin(request) for request in requests]
        # Trees of equal width are grown together, so that a source may step them in a batch.
        for width in sorted({r.width for r in rounds}):
            self._grow([r for r in rounds if r.width == width], width)
        return [self._finish(r) for r in rounds]

    def behind(self, request: DraftRequest) -> int:
        return self._source.behind(request)

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        for member in self._members:
            member.prefilled(events)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            r = self._rounds.pop(outcome.key, None)
            if r is not None and self._record is not None:
                self._record(DraftedRound(tuple(r.best), outcome.num_accepted_tokens, outcome.tree))
        for member in self._members:
            member.observe(outcomes)

    def forget(self, key: int) -> None:
        self._rounds.pop(key, None)
        for member in self._members:
            member.forget(key)

    def _begin(self, request: DraftRequest) -> _Round:
        plan = request.plan
        chain = not self._branching and not any(n > 1 for n in plan.branches)
        budget = min(self._budget, plan.max_nodes)
        width = 1 if chain else level_width(budget, plan.depth)
        return _Round(Expansion(request=request), budget, width, chain, 1.0 - self.variant.retrieved)

    def _grow(self, rounds: list[_Round], width: int) -> None:
        """Add levels until each tree has its depth, has stopped, or no further node would be kept."""
        growing = [r for r in rounds if r.budget]
        while growing:
            levels = self._source.expand([r.tree for r in growing], width)
            for r, level in zip(growing, levels, strict=True):
                tree = r.tree
                added = [
                    tree.add(node, token, probability)
                    for node, children in zip(tree.frontier, level)  # noqa: B905  (the last may lack room)
                    for token, probability in children
                ]
                added.sort(key=lambda node: -tree.scores[node])
                tree.frontier = added[: width if self._source.forks else 1]
                tree.num_levels += 1
            growing = [r for r in growing if r.tree.frontier and self._goes_on(r)]

    def _goes_on(self, r: _Round) -> bool:
        """Return whether to draft another level; apply the checkpoint of the current one."""
        tree, plan = r.tree, r.tree.request.plan
        best = tree.frontier[0]
        r.best.append(tree.scores[best])
        checkpoint = next((c for c in self.variant.checkpoints if c.level >= tree.num_levels), None)
        stopped = plan.stop is not None and not plan.stop.goes_on(
            Drafted(tuple(tree.confidence[node] for node in tree.path(best)))
        )
        unsure = (
            checkpoint is not None
            and checkpoint.level == tree.num_levels
            and tree.scores[best] < checkpoint.threshold
        )
        if checkpoint is not None and (stopped or unsure):
            r.share = min(r.share, checkpoint.share)
        if stopped or unsure or tree.num_levels >= plan.depth:
            return False
        # No child is likelier than its parent: a tree full of likelier nodes is complete.
        kept = sorted(tree.scores, reverse=True)[: r.num_drafted]
        return len(kept) < r.num_drafted or tree.scores[best] > kept[-1]

    def _finish(self, r: _Round) -> TokenTree:
        """Return the tree: the likeliest drafted nodes, retrieved nodes, then other drafted nodes."""
        tree = r.tree
        if self._record is not None:
            self._rounds[tree.request.key] = r
        # A node is never likelier than its parent; the stable sort keeps parents first where they tie.
        ranked = sorted(range(len(tree.tokens)), key=lambda node: -tree.scores[node])
        grafted = GraftedTree(r.budget, r.chain)
        places: dict[int, int | None] = {-1: -1}  # node of `tree` -> node of `grafted`

        def take(nodes: Sequence[int]) -> None:
            for node in nodes:
                parent = places[tree.parents[node]]
                places[node] = grafted.graft(
                    parent, tree.tokens[node], tree.confidence[node], self._source.name
                )

        take(ranked[: r.num_drafted])
        for drafter in self._retrieval:
            if not grafted.full:
                self._graft(grafted, drafter, r)
        take(ranked[r.num_drafted :])
        return grafted.tree()

    def _graft(self, onto: GraftedTree, drafter: PlannedDrafter, r: _Round) -> None:
        """Add a retrieved tree, merging nodes that are already present."""
        request = r.tree.request
        leaf = -1
        # A chain can only be extended at its end.
        if (self.variant.tail or r.chain) and isinstance(drafter, Extends):
            leaf = onto.likeliest_leaf()
        depth = request.plan.depth - len(onto.path(leaf))
        if depth < 1:
            return
        request = replace(request, plan=replace(request.plan, depth=depth, stop=None))
        if leaf >= 0:
            assert isinstance(drafter, Extends)  # else leaf is -1
            retrieved = drafter.below(request, onto.path_tokens(leaf))
        else:
            (retrieved,) = drafter.propose([request])
        places: dict[int, int | None] = {-1: leaf}
        for node, parent in enumerate(retrieved.parents):
            confidence = retrieved.confidence[node] if retrieved.confidence else 0.5
            probability = drafter.prior[bisect_right(EDGES, confidence) - 1]
            places[node] = onto.graft(places[parent], retrieved.tokens[node], probability, drafter.name)
