"""Expand a draft tree: choose children (greedy or sampled) and map draft columns to target ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from specport.core.arrays import to_host
from specport.core.estimates.confidence import NO_SPREAD, Spread, spread_of
from specport.core.ports import Array, Drafted, DraftRequest
from specport.core.sampling.processors import Prefix
from specport.core.sampling.topk import largest
from specport.core.tree_builder import TreeBuilder
from specport.drafters.model.head import DraftHead


@dataclass(frozen=True)
class _Children:
    """Hold the chosen children of one node.

    probabilities: [n] the draft's probability of each token.
    probs:   the distribution [vocab] they were sampled from; None = they are the likeliest tokens.
    spread:  summary of the draft distribution, for the stop rule.
    """

    tokens: Sequence[int]
    probabilities: Sequence[float]
    probs: Array | None
    spread: Spread


@dataclass(eq=False)
class Expansion(TreeBuilder):
    """Hold one request's tree while it grows level by level.

    frontier:   nodes to expand next; -1 = the root token.
    num_levels: number of levels so far.
    memo:       state that the source of the levels keeps between levels.
    """

    request: DraftRequest = field(kw_only=True)
    frontier: list[int] = field(default_factory=lambda: [-1])
    num_levels: int = 0
    memo: Any = None

    @property
    def done(self) -> bool:
        """Return whether the tree has reached its depth, or has no frontier."""
        return not self.frontier or self.num_levels >= self.request.plan.depth

    @property
    def likeliest_chain(self) -> bool:
        """Return whether the draft is the model's greedy chain, without a stop rule."""
        plan = self.request.plan
        plain = self.request.sampler.plain_greedy
        return plain and plan.stop is None and not plan.branches and plan.depth > 0

    def prefix(self, node: int) -> Prefix:
        """Return the context and the path down to `node`."""
        return Prefix(self.request.context, self.path_tokens(node))


def expand(tree: Expansion, logits: Sequence[Array], head: DraftHead) -> None:
    """Add children to every frontier node by the request's plan, and advance the frontier.

    logits: [columns] behind each frontier node.
    """
    plan = tree.request.plan
    width = plan.branches[tree.num_levels] if tree.num_levels < len(plan.branches) else 1
    frontier: list[int] = []
    choose = _likeliest if tree.request.sampler.params.greedy else _drawn
    for node, row in zip(tree.frontier, logits, strict=True):
        children = choose(tree, node, row, width, head)
        for token, probability in zip(children.tokens, children.probabilities, strict=True):
            confidence = None if plan.stop is None else probability
            child = tree.add(node, token, confidence, children.probs)
            if plan.stop is not None:
                confidences = tuple(tree.confidence[i] for i in tree.path(child))
                if not plan.stop.goes_on(Drafted(confidences, *children.spread)):
                    continue
            frontier.append(child)
    tree.frontier = frontier
    tree.num_levels += 1


def _likeliest(tree: Expansion, node: int, logits: Array, width: int, head: DraftHead) -> _Children:
    """Return the `width` likeliest tokens, best first; their probabilities are 1.0 without a stop rule."""
    sampler, stop = tree.request.sampler, tree.request.plan.stop
    plain = sampler.plain_greedy
    # Processors need target ids; without processors the columns of a cut head suffice.
    scores = head.own(logits) if plain else sampler.process(head.full(logits), tree.prefix(node))
    xp = array_namespace(scores)
    if width == 1:
        columns = [int(xp.argmax(scores))]
    else:
        columns = largest(xp.expand_dims(scores, axis=0), width)[0].tolist()
        if sampler.constraint is not None:  # fewer tokens may be allowed
            columns = [column for column in columns if float(scores[column]) > -np.inf]
    probabilities, spread = [1.0] * len(columns), NO_SPREAD
    if stop is not None:
        top = float(scores[columns[0]])
        weights = xp.exp(scores - top)
        norm = float(xp.sum(weights))
        spread = spread_of(weights, stop.top_k)
        probabilities[0] = 1.0 / norm
        if len(columns) > 1:
            picked = xp.take(scores, xp.asarray(columns[1:], device=device(scores)))
            gaps = [score - top for score in to_host(xp.astype(picked, xp.float32, copy=False)).tolist()]
            probabilities[1:] = [float(np.exp(gap)) / norm for gap in gaps]
    return _Children(head.ids(columns) if plain else columns, probabilities, None, spread)


def _drawn(tree: Expansion, node: int, logits: Array, width: int, head: DraftHead) -> _Children:
    """Return up to `width` tokens drawn without replacement."""
    sampler, stop = tree.request.sampler, tree.request.plan.stop
    q = sampler.distribution(head.full(logits), tree.prefix(node))
    tokens = [sampler.draw(q)]
    if width > 1:
        left = array_namespace(q).asarray(q, copy=True)
        while len(tokens) < width:
            left[tokens[-1]] = 0.0
            if not float(array_namespace(left).sum(left)):
                break
            tokens.append(sampler.draw(left))
    spread = NO_SPREAD if stop is None else spread_of(q, stop.top_k)
    return _Children(tokens, [float(q[token]) for token in tokens], q, spread)
