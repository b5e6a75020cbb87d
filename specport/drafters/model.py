"""A smaller language model as drafter. Knows token ids and the `Model` port, no runtime.

The draft keeps its own cache. It needs no word about what was accepted: at each proposal it compares
its cache with the context, rolls back to where they part, and reads on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from array_api_compat import array_namespace, device

from specport.core.estimates import CENTRES
from specport.core.ports import Array, CacheHandle, Drafted, DraftRequest, Model, Outcome, Row
from specport.core.sampling import Prefix
from specport.core.spread import NO_SPREAD, Spread, spread_of
from specport.core.tree import TokenTree, path_to

_PREFILL_CHUNK = 512  # tokens a step, as in the engine
# Tokens with their probabilities, and how the probability lies over all tokens.
_Chosen = tuple[list[tuple[int, float]], Spread]


@dataclass
class _State:
    """One sequence's draft cache: context[start:base], then the drafted tokens in `ahead`."""

    handle: CacheHandle
    start: int = 0
    base: int = 0
    ahead: list[int] = field(default_factory=list)


@dataclass
class _Growth:
    """A tree under construction for one request."""

    request: DraftRequest
    state: _State
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


class ModelDrafter:
    """Drafts chains, or trees where the plan has branches, with a model of the same tokenizer.

    Greedy parameters draft the likeliest tokens; others draw, siblings without replacement.

    target_vocab: width of the target's logits; what a wider draft has beyond it is never drafted.
    token_map:    [draft vocab] target ids behind the columns of a cut head; None for a whole head.
    window:       most tokens of the context that the draft reads at once. A draft that is further
                  behind starts anew with the last `window` tokens: it needs the recent text far more
                  than the old, and reading a long prompt twice seldom pays.
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
        self.name = name
        self._model = model
        self._target_vocab = target_vocab
        self._window = max(1, min(window, model.max_context // 2))
        self._map = None if token_map is None else np.asarray(token_map, dtype=np.int64)
        if self._map is not None:
            # Target id -> column; ids that the cut head lacks point behind the last column.
            self._columns = np.full(target_vocab, self._map.size, dtype=np.int64)
            self._columns[self._map] = np.arange(self._map.size)
        self._states: dict[int, _State] = {}

    @property
    def prior(self) -> Sequence[float]:
        """Draft models are well calibrated on what their target writes: 0.9 is right 9 times in 10."""
        return CENTRES

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        growths = [_Growth(request, self._state(request.key)) for request in requests]
        fitting = [g for g in growths if self._fits(g.request)]
        width = max(1, len(fitting)) if self._model.capabilities.batch else 1
        for start in range(0, len(fitting), width):
            self._grow(fitting[start : start + width])
        return [growth.tree(self.name) for growth in growths]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing to learn: the next proposal compares the cache with the context."""

    def forget(self, key: int) -> None:
        state = self._states.pop(key, None)
        if state:
            self._model.close(state.handle)

    def rewind(self, key: int, length: int) -> None:
        """Only the context's first `length` tokens are still what they were at the last proposal."""
        state = self._states.get(key)
        if state is None or length >= state.base:
            return
        if length <= state.start:
            self.forget(key)
        else:
            state.base, state.ahead = length, []

    def _state(self, key: int) -> _State:
        if key not in self._states:
            self._states[key] = _State(self._model.open())
        return self._states[key]

    def behind(self, request: DraftRequest) -> int:
        """Tokens of the context to read before the first draft token; 1 right after a rejection."""
        state = self._states.get(request.key)
        if state is None:
            return min(len(request.context), self._window)
        return len(request.context) - self._resume(state, request)[1]

    def _fits(self, request: DraftRequest) -> bool:
        return request.plan.max_nodes < self._model.max_context

    def _grow(self, growths: list[_Growth]) -> None:
        """Draft level by level until every tree has its depth or has stopped."""
        logits = self._catch_up(growths)
        while growths:
            for growth, rows in zip(growths, logits, strict=True):
                self._expand(growth, rows)
            growths = [growth for growth in growths if not growth.done]
            logits = self._score(growths) if growths else []

    def _catch_up(self, growths: Sequence[_Growth]) -> list[list[Array]]:
        """Bring each cache up to its context; return the logits [vocab] after each root token."""
        for growth in growths:
            self._roll_back(growth)
        logits: dict[int, Array] = {}
        behind = list(growths)
        while behind:
            rows = []
            for growth in behind:
                start = growth.state.start + growth.state.handle.length
                chunk = growth.request.context[start : start + _PREFILL_CHUNK]
                rows.append(Row(growth.state.handle, TokenTree.chain(chunk), logits="last"))
            output = self._model.step(rows)
            for i, (growth, row) in enumerate(zip(behind, rows, strict=True)):
                self._model.commit(row.handle, range(len(row.tree)))
                logits[growth.request.key] = output.logits[output.offsets[i], :]
            waiting = [g for g in behind if g.state.start + g.state.handle.length < len(g.request.context)]
            if waiting:  # the next step overwrites this one's output
                for growth in behind:
                    key = growth.request.key
                    logits[key] = array_namespace(logits[key]).asarray(logits[key], copy=True)
            behind = waiting
        return [[logits[growth.request.key]] for growth in growths]

    def _roll_back(self, growth: _Growth) -> None:
        """Keep of the draft's cache what the context confirms, or nothing if too little is left of it."""
        state, context = growth.state, growth.request.context
        state.start, kept = self._resume(state, growth.request)
        self._model.truncate(state.handle, kept - state.start)
        state.base, state.ahead = len(context), []

    def _resume(self, state: _State, request: DraftRequest) -> tuple[int, int]:
        """Where the draft's cache starts in the context, and up to where it is confirmed."""
        context = request.context
        kept = state.base
        for token in state.ahead:
            if kept >= len(context) or context[kept] != token:
                break
            kept += 1
        # The root token is always read anew: its logits are what drafting starts from.
        kept = min(kept, len(context) - 1, state.start + state.handle.length)
        room = self._model.max_context - request.plan.max_nodes
        if len(context) - kept > self._window or len(context) - state.start > room:
            start = max(0, len(context) - min(self._window, room))
            return start, start
        return state.start, kept

    def _score(self, growths: Sequence[_Growth]) -> list[list[Array]]:
        """Logits [vocab] after each frontier node of each tree."""
        # A step's mask covers new tokens only, so a tree is stepped whole at each level. A chain's
        # tokens are committed as they come.
        rows = [
            Row(g.state.handle, TokenTree(tuple(g.tokens), tuple(g.parents)))
            if g.request.plan.branches
            else Row(g.state.handle, TokenTree.chain(g.tokens[-1:]))
            for g in growths
        ]
        output = self._model.step(rows)
        logits = []
        for i, (growth, row) in enumerate(zip(growths, rows, strict=True)):
            first = output.offsets[i]
            if growth.request.plan.branches:
                self._model.commit(row.handle, ())
                logits.append([output.logits[first + node, :] for node in growth.frontier])
            else:
                self._model.commit(row.handle, (0,))
                growth.state.ahead.append(row.tree.tokens[0])
                logits.append([output.logits[first, :]])
        return logits

    def _expand(self, growth: _Growth, logits: Sequence[Array]) -> None:
        """Give every frontier node its children."""
        plan = growth.request.plan
        width = plan.branches[growth.depth] if growth.depth < len(plan.branches) else 1
        frontier: list[int] = []
        draw = self._likeliest if growth.request.sampler.params.greedy else self._drawn
        for node, row in zip(growth.frontier, logits, strict=True):
            found, spread = draw(growth, node, row, width)
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

    def _likeliest(self, growth: _Growth, node: int, logits: Array, width: int) -> _Chosen:
        """The `width` likeliest tokens, best first, each with its probability (1.0 if nobody asks)."""
        sampler = growth.request.sampler
        plain = sampler.params.plain_greedy
        # Penalties speak of target ids; without them a cut head's own columns will do.
        scores = self._own(logits) if plain else sampler.process(self._full(logits), _prefix(growth, node))
        xp = array_namespace(scores)
        columns = [int(xp.argmax(scores))]
        top = float(scores[columns[0]])
        stop, norm, spread = growth.request.plan.stop, 0.0, NO_SPREAD
        if stop is not None:
            weights = xp.exp(scores - top)
            norm = float(xp.sum(weights))
            spread = spread_of(weights, stop.top_k)
        found = [(columns[0], 1.0 / norm if norm else 1.0)]
        if width > 1:
            scores = xp.asarray(scores, copy=True)
        while len(found) < min(width, scores.shape[0]):
            scores[columns[-1]] = -xp.inf
            columns.append(int(xp.argmax(scores)))
            gap = float(scores[columns[-1]]) - top
            found.append((columns[-1], float(np.exp(gap)) / norm if norm else 1.0))
        if self._map is None or not plain:
            return found, spread
        return [(int(self._map[column]), probability) for column, probability in found], spread

    def _drawn(self, growth: _Growth, node: int, logits: Array, width: int) -> _Chosen:
        """Up to `width` tokens drawn without replacement, each with its probability in q."""
        sampler = growth.request.sampler
        q = sampler.distribution(self._full(logits), _prefix(growth, node))
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

    def _own(self, logits: Array) -> Array:
        """The draft's logits without columns that the target does not have."""
        return logits[: self._target_vocab] if self._map is None else logits

    def _full(self, logits: Array) -> Array:
        """Logits by target id: a cut head's columns are put in their places, all else is -inf."""
        if self._map is None:
            return self._own(logits)
        xp = array_namespace(logits)
        where = device(logits)
        absent = xp.full((1,), -xp.inf, dtype=logits.dtype, device=where)
        return xp.take(xp.concat([logits, absent]), xp.asarray(self._columns, device=where))


def _prefix(growth: _Growth, node: int) -> Prefix:
    """The context and the path down to `node`."""
    path = path_to(growth.parents, node)
    return Prefix(growth.request.context, tuple(growth.tokens[i] for i in path))
