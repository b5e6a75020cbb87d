"""Candidate nodes level by level: what a dynamic tree is grown from.

A draft model runs once a level. Trained heads and block drafters answer all levels from one pass: they keep
it from the first `expand` of a round on, and look up the level that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from array_api_compat import array_namespace, device

from specport.core.ports import Array, DraftRequest, Model, Outcome, Plan
from specport.core.sampling.sampler import Prefix, to_host
from specport.core.sampling.topk import largest
from specport.core.tree import TokenTree, path_to
from specport.drafters.model.expand import DraftHead
from specport.drafters.model.kv_cache import DraftCache, Level

Children = list[tuple[int, float]]  # tokens with their probability given their parent, likeliest first


@dataclass
class Growing:
    """A tree under construction for one request.

    scores:   [n] product of the probabilities from the root's child to each node.
    frontier: nodes to expand next, the likeliest first; -1 = the root token.
    memo:     the source's own, from one level to the next.
    """

    request: DraftRequest
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    frontier: list[int] = field(default_factory=lambda: [-1])
    num_levels: int = 0
    memo: Any = None

    def path(self, node: int) -> tuple[int, ...]:
        """Tokens from the root's child to `node`."""
        return tuple(self.tokens[i] for i in path_to(self.parents, node))

    def add(self, parent: int, token: int, confidence: float) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.confidence.append(confidence)
        self.scores.append(confidence * (self.scores[parent] if parent >= 0 else 1.0))
        return len(self.tokens) - 1


class LevelSource(Protocol):
    """Proposes the children of a tree's frontier. They must not depend on random draws: what is ranked and
    cut later has to be deterministic (see `core.acceptance`).
    """

    @property
    def name(self) -> str: ...

    @property
    def forks(self) -> bool:
        """Whether it expands several nodes of a level; if not, a frontier has one node."""
        ...

    def behind(self, request: DraftRequest) -> int:
        """As `PlannedDrafter.behind`."""
        ...

    def expand(self, trees: Sequence[Growing], width: int) -> list[list[Children]]:
        """Up to `width` children of each frontier node of each tree.

        All trees are of the same level. Children may be missing where there is no room for more.
        """
        ...

    def observe(self, outcomes: Sequence[Outcome]) -> None: ...

    def forget(self, key: int) -> None: ...


class ModelLevels:
    """A draft model as a source of levels; its arguments are those of `ModelDrafter`."""

    def __init__(
        self,
        model: Model,
        target_vocab: int,
        token_map: Sequence[int] | None = None,
        *,
        window: int = 256,
        name: str = "model",
    ) -> None:
        self.name = name
        self._cache = DraftCache(model, DraftHead(target_vocab, token_map), window)

    @property
    def forks(self) -> bool:
        return self._cache.tree

    def behind(self, request: DraftRequest) -> int:
        return self._cache.behind(request)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing to learn: the next level compares the cache with the context."""

    def forget(self, key: int) -> None:
        self._cache.forget(key)

    def expand(self, trees: Sequence[Growing], width: int) -> list[list[Children]]:
        size = max(1, len(trees)) if self._cache.batch else 1
        out: list[list[Children]] = []
        for start in range(0, len(trees), size):
            group = trees[start : start + size]
            logits = self._step(group) if group[0].num_levels else self._read(group, width)
            for tree, rows in zip(group, logits, strict=True):
                # Behind the last row there was no room for more.
                out.append([self._children(tree, *found, width) for found in zip(tree.frontier, rows)])  # noqa: B905
        return out

    def _read(self, trees: Sequence[Growing], width: int) -> list[list[Array]]:
        """Bring each cache up to its context; the logits [vocab] after each root token."""
        fitting = []
        for tree in trees:
            # The plan says how much room to keep: of each level, `width` nodes at most are read.
            request = replace(tree.request, plan=Plan(tree.request.plan.depth, (width,)))
            if self._cache.fits(request):
                tree.memo = []
                fitting.append(request)
        logits = iter(self._cache.catch_up(fitting) if fitting else ())
        return [[] if tree.memo is None else [next(logits)] for tree in trees]

    def _step(self, trees: Sequence[Growing]) -> list[list[Array]]:
        """The logits [vocab] after each frontier node, as far as a step has room for."""
        paths = [self._unread(tree) for tree in trees]
        nodes = [sorted({node for path in found for node in path}) for found in paths]
        asked = [i for i, among in enumerate(nodes) if among]
        if not asked:
            return [[]] * len(trees)
        # What all paths share can stay: whatever comes next is below it.
        shared = [[level[0] for level in zip(*found) if len({*level}) == 1] for found in paths]  # noqa: B905
        scored = self._cache.score(
            [
                Level(
                    trees[i].request.key,
                    _below(trees[i], nodes[i]),
                    kept=[nodes[i].index(node) for node in shared[i]],
                    asked=[nodes[i].index(path[-1]) for path in paths[i]],
                )
                for i in asked
            ]
        )
        logits: list[list[Array]] = [[] for _ in trees]
        for i, rows in zip(asked, scored, strict=True):
            trees[i].memo += shared[i]
            logits[i] = rows
        return logits

    def _unread(self, tree: Growing) -> list[list[int]]:
        """For each frontier node, the path to it as far as the cache lacks it.

        A step's mask covers new tokens only, so a level's paths are stepped whole. The tree's memo is the
        path that stands in the cache; without one its request did not fit.
        """
        if tree.memo is None:
            return []
        paths: list[list[int]] = []
        among: set[int] = set()
        for node in tree.frontier:
            path = path_to(tree.parents, node)[len(tree.memo) :]
            among.update(path)
            if self._cache.widest is not None and len(among) > self._cache.widest:
                break
            paths.append(path)
        return paths

    def _children(self, tree: Growing, node: int, logits: Array, width: int) -> Children:
        sampler, head = tree.request.sampler, self._cache.head(tree.request.key)
        plain = sampler.params.plain_greedy
        # Penalties speak of target ids; without them a cut head's own columns will do.
        scores = head.own(logits) if plain else head.full(logits)
        xp = array_namespace(scores)
        if sampler.params.greedy:
            if not plain:
                scores = sampler.process(scores, Prefix(tree.request.context, tree.path(node)))
            weights = xp.exp(xp.astype(scores, xp.float32) - xp.max(xp.astype(scores, xp.float32)))
            weights = weights / xp.sum(weights)
        else:
            weights = sampler.distribution(scores, Prefix(tree.request.context, tree.path(node)))
        columns = largest(xp.expand_dims(weights, axis=0), width)[0]
        chances = to_host(xp.take(weights, xp.asarray(columns, device=device(weights)))).tolist()
        tokens = head.ids(columns.tolist()) if plain else columns.tolist()
        return [(token, chance) for token, chance in zip(tokens, chances, strict=True) if chance > 0]


def _below(tree: Growing, nodes: Sequence[int]) -> TokenTree:
    """These nodes as a tree of their own; those above them are in the cache."""
    place = {node: i for i, node in enumerate(nodes)}
    tokens = tuple(tree.tokens[node] for node in nodes)
    return TokenTree(tokens, tuple(place.get(tree.parents[node], -1) for node in nodes))
