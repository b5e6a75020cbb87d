"""Propose candidate nodes level by level, from which a dynamic tree is grown.

A draft model runs once per level. Trained heads and block drafters compute all levels in one pass: they keep
its result from the first `expand` of a round on, and look up the requested level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from array_api_compat import array_namespace, device

from specport.core.arrays import to_host
from specport.core.ports import Array, DraftRequest, Model, Needs, Outcome, Plan, Prefilled
from specport.core.prefix_cache import PrefixCache
from specport.core.sampling.topk import largest
from specport.core.tree import TokenTree
from specport.drafters.model.expand import Expansion
from specport.drafters.model.head import DraftHead
from specport.drafters.model.kv_cache import DraftCache
from specport.drafters.model.reading import Level

Children = list[tuple[int, float]]  # tokens with their probability given their parent, likeliest first


class LevelSource(Protocol):
    """Propose the children of a tree's frontier, whose likeliest node stands first.

    Children must not depend on random numbers: nodes that are ranked and cut later must be deterministic
    (see `core.verify.rules`).
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    @property
    def forks(self) -> bool:
        """Return whether it expands several nodes of a level; if not, a frontier has one node."""
        ...

    def behind(self, request: DraftRequest) -> int:
        """Return as `PlannedDrafter.behind`."""
        ...

    def expand(self, trees: Sequence[Expansion], width: int) -> list[list[Children]]:
        """Return up to `width` children of each frontier node of each tree.

        All trees have the same number of levels. The last nodes' children may be missing for lack of room.
        """
        ...

    def prefilled(self, events: Sequence[Prefilled]) -> None: ...

    def observe(self, outcomes: Sequence[Outcome]) -> None: ...

    def forget(self, key: int) -> None: ...


class ModelLevels:
    """Propose levels with a draft model; the arguments are those of `ModelDrafter`."""

    needs = Needs()

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
        self.name = name
        self._cache = DraftCache(model, DraftHead(target_vocab, token_map), window, prefixes)

    @property
    def forks(self) -> bool:
        return self._cache.tree

    def behind(self, request: DraftRequest) -> int:
        return self._cache.behind(request)

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        """Do nothing: the context is read at the next proposal."""

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Do nothing: the next proposal compares the cache with the context."""

    def forget(self, key: int) -> None:
        self._cache.forget(key)

    def expand(self, trees: Sequence[Expansion], width: int) -> list[list[Children]]:
        size = max(1, len(trees)) if self._cache.batch else 1
        out: list[list[Children]] = []
        for start in range(0, len(trees), size):
            group = trees[start : start + size]
            logits = self._step(group) if group[0].num_levels else self._read(group, width)
            for tree, rows in zip(group, logits, strict=True):
                # Rows may be missing at the end, for lack of room.
                pairs = zip(tree.frontier, rows)  # noqa: B905
                out.append([self._children(tree, node, row, width) for node, row in pairs])
        return out

    def _read(self, trees: Sequence[Expansion], width: int) -> list[list[Array]]:
        """Read each context; return the logits [columns] after each root token, [] where there is no room."""
        fitting: list[tuple[Expansion, DraftRequest]] = []
        for tree in trees:
            # The plan determines the room to keep: at most `width` nodes of each level are read.
            request = replace(tree.request, plan=Plan(tree.request.plan.depth, (width,)))
            if self._cache.fits(request):
                fitting.append((tree, request))
        logits = self._cache.catch_up([request for _, request in fitting]) if fitting else []
        first: dict[int, Array] = {}
        for (tree, request), row in zip(fitting, logits, strict=True):
            if row is not None:
                tree.memo = []
                first[request.key] = row
        return [[first[tree.request.key]] if tree.request.key in first else [] for tree in trees]

    def _step(self, trees: Sequence[Expansion]) -> list[list[Array]]:
        """Return the logits [columns] after each frontier node, as far as a step has room."""
        paths = [self._unread(tree) for tree in trees]
        nodes = [sorted({node for path in unread for node in path}) for unread in paths]
        asked = [i for i, among in enumerate(nodes) if among]
        if not asked:
            return [[]] * len(trees)
        # The common prefix of all paths stays in the cache: all later nodes are below it.
        shared = [[level[0] for level in zip(*unread) if len({*level}) == 1] for unread in paths]  # noqa: B905
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
            if rows:
                trees[i].memo += shared[i]
                logits[i] = rows
        return logits

    def _unread(self, tree: Expansion) -> list[list[int]]:
        """Return the path to each frontier node, without the nodes in the cache.

        A step's mask covers new tokens only, so each level steps whole paths. The tree's memo is the path in
        the cache; None means that there was no room for the context.
        """
        if tree.memo is None:
            return []
        paths: list[list[int]] = []
        among: set[int] = set()
        for node in tree.frontier:
            path = tree.path(node)[len(tree.memo) :]
            among.update(path)
            if self._cache.widest is not None and len(among) > self._cache.widest:
                break
            paths.append(path)
        return paths

    def _children(self, tree: Expansion, node: int, logits: Array, width: int) -> Children:
        sampler, head = tree.request.sampler, self._cache.head(tree.request.key)
        plain = sampler.plain_greedy
        # Processors need target ids; without processors the columns of a cut head suffice.
        scores = head.own(logits) if plain else head.full(logits)
        xp = array_namespace(scores)
        if sampler.params.greedy:
            if not plain:
                scores = sampler.process(scores, tree.prefix(node))
            weights = xp.exp(xp.astype(scores, xp.float32) - xp.max(xp.astype(scores, xp.float32)))
            weights = weights / xp.sum(weights)
        else:
            weights = sampler.distribution(scores, tree.prefix(node))
        columns = largest(xp.expand_dims(weights, axis=0), width)[0]
        probabilities = to_host(xp.take(weights, xp.asarray(columns, device=device(weights)))).tolist()
        tokens = head.ids(columns.tolist()) if plain else columns.tolist()
        return [(token, p) for token, p in zip(tokens, probabilities, strict=True) if p > 0]


def _below(tree: Expansion, nodes: Sequence[int]) -> TokenTree:
    """Return these nodes as a separate tree; the nodes above them are in the cache."""
    place = {node: i for i, node in enumerate(nodes)}
    tokens = tuple(tree.tokens[node] for node in nodes)
    return TokenTree(tokens, tuple(place.get(tree.parents[node], -1) for node in nodes))
