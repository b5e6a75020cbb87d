"""Graft (arXiv 2605.20104): a draft model's dynamic tree, pruned where it is unsure, filled by retrieval.

A dense draft tree costs drafting time; to stop early saves it, but loses good candidates. Graft keeps the
number of verified nodes constant: what pruning frees goes to tokens that retrieval finds at nearly no cost.
The tree is grown and re-ranked as in EAGLE-2 (arXiv 2406.16858). Every node is deterministic, since the tree
is cut by what it holds (see `core.acceptance`); at a temperature a node is therefore kept with p, not p / q.

Retrieval does not run beside the draft model, in a thread: it takes some 0.05 ms where a level of drafting
takes milliseconds, and whether there is anything to retrieve is known only behind the checkpoints.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from specport.core.planning.acceptance_rates import CENTRES, EDGES
from specport.core.ports import Drafted, DraftRequest, Outcome, PlannedDrafter, top_k_of
from specport.core.tree import TokenTree, path_to
from specport.drafters.tree.grafted_tree import Grafted
from specport.drafters.tree.level_proposer import Growing, LevelSource

BUDGET = 60  # nodes of EAGLE-2's tree
_LEVELS = 6  # it expands a sixth of them a level


@dataclass(frozen=True)
class Checkpoint:
    """Stop drafting behind this level if even the best path's probability is below `threshold`.

    share: of the budget that the drafted nodes keep then.
    """

    level: int
    threshold: float
    share: float


@dataclass(frozen=True)
class Variant:
    """How a budget of nodes is shared between drafting and retrieval.

    checkpoints: by level; what they free is retrieved.
    retrieved:   share of the budget that is retrieved in any case.
    tail:        retrieve what follows the likeliest leaf, not what follows the root token.
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    retrieved: float = 0.0
    tail: bool = False


# Levels and shares are the paper's (8, 24 and 40 of 60 nodes); its thresholds are not public. These are for a
# device and models that were not calibrated (see `graft_thresholds`).
CHECKPOINTS = (Checkpoint(1, 0.35, 8 / 60), Checkpoint(2, 0.25, 24 / 60), Checkpoint(6, 0.15, 40 / 60))
VARIANTS = {
    "dynamic": Variant(),  # EAGLE-2's tree, nothing retrieved
    "root": Variant(retrieved=20 / 60),  # Graft(ROOT): retrieval without pruning
    "tail": Variant(retrieved=20 / 60, tail=True),  # Graft(TAIL): the same at a leaf
    "graft": Variant(CHECKPOINTS),
}


@runtime_checkable
class Extends(Protocol):
    """A retrieval that can go on from tokens which were only drafted."""

    def below(self, request: DraftRequest, path: Sequence[int]) -> TokenTree: ...


@dataclass(frozen=True)
class DraftedRound:
    """One round, for calibration.

    best: [levels] the probability of the best path at each drafted level.
    tree: what was verified; a planner may have cut it.
    """

    best: tuple[float, ...]
    accepted: int
    tree: TokenTree = field(default_factory=TokenTree)


@dataclass
class _Round:
    """A tree and what is to become of it. share: of the budget that drafted nodes may take."""

    tree: Growing
    budget: int
    width: int
    chain: bool
    share: float
    best: list[float] = field(default_factory=list)

    @property
    def num_drafted(self) -> int:
        return max(1, round(self.budget * self.share))


def level_width(budget: int, depth: int) -> int:
    """Nodes of a level that are expanded, and children that each of them gets."""
    return max(2, round(budget / max(1, min(_LEVELS, depth))))


class GraftDrafter:
    """Grows a tree with a source of levels and grafts what retrieval finds onto it.

    retrieval: asked in order until the budget is full; each drafts deterministic nodes at no cost.
    variant:   see VARIANTS.
    budget:    most nodes of a tree; a plan that allows fewer counts.
    branching: grow trees also where the plan names no branches; for a planner of a target that takes trees.
    record:    is told of every round that was verified; for calibration.

    A plan's stop rule is asked of the best path behind each level. Stopped by it, the draft keeps as many
    nodes as at the next checkpoint. It is shown probabilities only, no `Drafted.top`.

    Raises ValueError where `variant` needs retrieval that extends and has none.
    """

    prior = CENTRES  # retrieved nodes' confidence is translated, see `_graft`

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
        self.top_k = top_k_of(source, *self._retrieval)
        self._variant = variant
        self._budget = budget
        self._branching = branching
        self._record = record
        self._rounds: dict[int, _Round] = {}  # that are being verified

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        rounds = [self._begin(request) for request in requests]
        # Trees of one width go together, so that a source may step them in a batch.
        for width in sorted({r.width for r in rounds}):
            self._grow([r for r in rounds if r.width == width], width)
        return [self._finish(r) for r in rounds]

    def behind(self, request: DraftRequest) -> int:
        return self._source.behind(request)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            r = self._rounds.pop(outcome.key, None)
            if r is not None and self._record is not None:
                self._record(DraftedRound(tuple(r.best), outcome.num_accepted_tokens, outcome.tree))
        self._source.observe(outcomes)
        for drafter in self._retrieval:
            drafter.observe(outcomes)

    def forget(self, key: int) -> None:
        self._rounds.pop(key, None)
        self._source.forget(key)
        for drafter in self._retrieval:
            drafter.forget(key)

    def _begin(self, request: DraftRequest) -> _Round:
        plan = request.plan
        chain = not self._branching and not any(n > 1 for n in plan.branches)
        budget = min(self._budget, plan.max_nodes)
        width = 1 if chain else level_width(budget, plan.depth)
        return _Round(Growing(request), budget, width, chain, 1.0 - self._variant.retrieved)

    def _grow(self, rounds: list[_Round], width: int) -> None:
        """Level by level, until each tree has its depth, has stopped or can grow nothing worth keeping."""
        growing = [r for r in rounds if r.budget]
        while growing:
            levels = self._source.expand([r.tree for r in growing], width)
            for r, level in zip(growing, levels, strict=True):
                tree = r.tree
                added = [
                    tree.add(node, token, chance)
                    for node, children in zip(tree.frontier, level)  # noqa: B905  (no room for the others)
                    for token, chance in children
                ]
                added.sort(key=lambda node: -tree.scores[node])
                tree.frontier = added[: width if self._source.forks else 1]
                tree.num_levels += 1
            growing = [r for r in growing if r.tree.frontier and self._goes_on(r)]

    def _goes_on(self, r: _Round) -> bool:
        tree, plan = r.tree, r.tree.request.plan
        best = tree.frontier[0]
        r.best.append(tree.scores[best])
        checkpoint = next((c for c in self._variant.checkpoints if c.level >= tree.num_levels), None)
        stopped = plan.stop is not None and not plan.stop.goes_on(
            Drafted(tuple(tree.confidence[node] for node in path_to(tree.parents, best)))
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
        # No child is likelier than its parent: once the tree is full of likelier nodes, it is complete.
        kept = sorted(tree.scores, reverse=True)[: r.num_drafted]
        return len(kept) < r.num_drafted or tree.scores[best] > kept[-1]

    def _finish(self, r: _Round) -> TokenTree:
        """The likeliest drafted nodes, what retrieval finds, then other drafted nodes, up to the budget."""
        tree = r.tree
        if self._record is not None:
            self._rounds[tree.request.key] = r
        # A node is never likelier than its parent; the stable sort keeps parents first where they tie.
        ranked = sorted(range(len(tree.tokens)), key=lambda node: -tree.scores[node])
        grafted = Grafted(r.budget, r.chain)
        places: dict[int, int | None] = {-1: -1}  # node of `tree` -> node of `grafted`

        def take(nodes: Sequence[int]) -> None:
            for node in nodes:
                parent = places[tree.parents[node]]
                places[node] = grafted.add(
                    parent, tree.tokens[node], tree.confidence[node], self._source.name
                )

        take(ranked[: r.num_drafted])
        for drafter in self._retrieval:
            if not grafted.full:
                self._graft(grafted, drafter, r)
        take(ranked[r.num_drafted :])
        return grafted.tree()

    def _graft(self, onto: Grafted, drafter: PlannedDrafter, r: _Round) -> None:
        """Add a retrieved tree; what is below a node that is there already is redirected to it."""
        request = r.tree.request
        leaf = -1
        # A chain has one place for more: its end.
        if (self._variant.tail or r.chain) and isinstance(drafter, Extends):
            leaf = onto.likeliest_leaf()
        depth = request.plan.depth - len(onto.path(leaf))
        if depth < 1:
            return
        request = replace(request, plan=replace(request.plan, depth=depth, stop=None))
        if leaf >= 0:
            assert isinstance(drafter, Extends)  # else there is no leaf
            found = drafter.below(request, onto.path(leaf))
        else:
            (found,) = drafter.propose([request])
        places: dict[int, int | None] = {-1: leaf}
        for node, parent in enumerate(found.parents):
            confidence = found.confidence[node] if found.confidence else 0.5
            chance = drafter.prior[bisect_right(EDGES, confidence) - 1]
            places[node] = onto.add(places[parent], found.tokens[node], chance, drafter.name)
