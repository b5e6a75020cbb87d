"""A tree that a draft model grows: whose children it gets, greedy or drawn, and what ids they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from specport.core.planning.confidence import NO_SPREAD, Spread, spread_of
from specport.core.ports import Array, Drafted, DraftRequest
from specport.core.sampling.sampler import Prefix
from specport.core.tree import TokenTree, path_to

# Tokens with their probabilities, and how the probability lies over all tokens.
_Chosen = tuple[list[tuple[int, float]], Spread]


@dataclass
class Growth:
    """A tree under construction for one request."""

    request: DraftRequest
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probs: list[Array] = field(default_factory=list)  # stays empty when greedy
    confidence: list[float] = field(default_factory=list)  # stays empty when nobody asks
    frontier: list[int] = field(default_factory=lambda: [-1])  # nodes to expand next; -1 = root token
    depth: int = 0

    @property
    def done(self) -> bool:
        return not self.frontier or self.depth >= self.request.plan.depth

    def tree(self, source: str) -> TokenTree:
        return TokenTree(
            tuple(self.tokens),
            tuple(self.parents),
            probs=self.probs or None,
            replacement=False,
            confidence=tuple(self.confidence),
            sources=(source,) * len(self.tokens),
        )

    @property
    def likeliest_chain(self) -> bool:
        """Whether it becomes the model's own likeliest chain, and nobody asks how sure that is."""
        plan, params = self.request.plan, self.request.sampler.params
        return params.plain_greedy and plan.stop is None and not plan.branches and plan.depth > 0

    def become(self, chain: Sequence[int]) -> None:
        self.tokens, self.parents = [*chain], [*range(-1, len(chain) - 1)]

    def prefix(self, node: int) -> Prefix:
        """The context and the path down to `node`."""
        path = path_to(self.parents, node)
        return Prefix(self.request.context, tuple(self.tokens[i] for i in path))


class DraftHead:
    """What the columns of a draft's logits are to the target.

    target_vocab: width of the target's logits; what a wider draft has beyond it is never drafted.
    token_map:    [draft vocab] target ids behind the columns of a cut head; None for a whole head.
    """

    def __init__(self, target_vocab: int, token_map: Sequence[int] | NDArray[np.int64] | None = None) -> None:
        self._target_vocab = target_vocab
        self._map = None if token_map is None else np.asarray(token_map, dtype=np.int64)

    @cached_property
    def _columns(self) -> NDArray[np.int64]:
        """Target id -> column; ids that the cut head lacks point behind the last column."""
        assert self._map is not None
        columns = np.full(self._target_vocab, self._map.size, dtype=np.int64)
        columns[self._map] = np.arange(self._map.size)
        return columns

    @property
    def columns(self) -> int | None:
        """How many of a draft's columns count; None = all."""
        return self._target_vocab if self._map is None else None

    def lacks(self, token: int) -> bool:
        """Whether it is an id of the target's that a cut head does not have."""
        if self._map is None or not 0 <= token < self._target_vocab:
            return False
        return bool(self._columns[token] == self._map.size)

    def with_ids(self, tokens: Sequence[int]) -> DraftHead:
        """A cut head with more columns behind its own."""
        assert self._map is not None
        return DraftHead(self._target_vocab, np.concatenate([self._map, tokens]))

    def own(self, logits: Array) -> Array:
        """[columns] the draft's logits without those that the target does not have."""
        return logits[: self._target_vocab] if self._map is None else logits

    def full(self, logits: Array) -> Array:
        """Logits by target id: a cut head's columns are put in their places, all else is -inf."""
        if self._map is None:
            return self.own(logits)
        xp = array_namespace(logits)
        where = device(logits)
        absent = xp.full((1,), -xp.inf, dtype=logits.dtype, device=where)
        return xp.take(xp.concat([logits, absent]), xp.asarray(self._columns, device=where))

    def ids(self, columns: Sequence[int]) -> list[int]:
        """Target ids behind columns of `own`."""
        return [*columns] if self._map is None else [int(self._map[column]) for column in columns]


def expand(growth: Growth, logits: Sequence[Array], head: DraftHead) -> None:
    """Give every frontier node its children; logits: [vocab] behind each of these nodes."""
    plan = growth.request.plan
    width = plan.branches[growth.depth] if growth.depth < len(plan.branches) else 1
    frontier: list[int] = []
    draw = _likeliest if growth.request.sampler.params.greedy else _drawn
    for node, row in zip(growth.frontier, logits, strict=True):
        found, spread = draw(growth, node, row, width, head)
        for token, probability in found:
            growth.tokens.append(token)
            growth.parents.append(node)
            if plan.stop is not None:
                growth.confidence.append(probability)
                path = path_to(growth.parents, len(growth.tokens) - 1)
                if not plan.stop.goes_on(Drafted(tuple(growth.confidence[i] for i in path), *spread)):
                    continue
            frontier.append(len(growth.tokens) - 1)
    growth.frontier = frontier
    growth.depth += 1


def _likeliest(growth: Growth, node: int, logits: Array, width: int, head: DraftHead) -> _Chosen:
    """The `width` likeliest tokens, best first, each with its probability (1.0 if nobody asks)."""
    sampler = growth.request.sampler
    plain = sampler.params.plain_greedy
    # Penalties speak of target ids; without them a cut head's own columns will do.
    scores = head.own(logits) if plain else sampler.process(head.full(logits), growth.prefix(node))
    xp = array_namespace(scores)
    columns = [int(xp.argmax(scores))]
    top = float(scores[columns[0]])
    stop, norm, spread = growth.request.plan.stop, 0.0, NO_SPREAD
    if stop is not None:
        weights = xp.exp(scores - top)
        norm = float(xp.sum(weights))
        spread = spread_of(weights, stop.top_k)
    chances = [1.0 / norm if norm else 1.0]
    if width > 1:
        scores = xp.asarray(scores, copy=True)
    while len(columns) < min(width, scores.shape[0]):
        scores[columns[-1]] = -xp.inf
        columns.append(int(xp.argmax(scores)))
        gap = float(scores[columns[-1]]) - top
        chances.append(float(np.exp(gap)) / norm if norm else 1.0)
    return [*zip(head.ids(columns) if plain else columns, chances, strict=True)], spread


def _drawn(growth: Growth, node: int, logits: Array, width: int, head: DraftHead) -> _Chosen:
    """Up to `width` tokens drawn without replacement, each with its probability in q."""
    sampler = growth.request.sampler
    q = sampler.distribution(head.full(logits), growth.prefix(node))
    found = [sampler.draw(q)]
    if width > 1:
        left = array_namespace(q).asarray(q, copy=True)
        while len(found) < width:
            left[found[-1]] = 0.0
            if not float(array_namespace(left).sum(left)):
                break
            found.append(sampler.draw(left))
    growth.probs.extend([q] * len(found))
    stop = growth.request.plan.stop
    spread = NO_SPREAD if stop is None else spread_of(q, stop.top_k)
    return [(token, float(q[token])) for token in found], spread
