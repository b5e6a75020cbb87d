"""Where a draft model's view of each sequence lives, and how it is brought up to the context.

The cache needs no word about what was accepted: at each proposal it is compared with the context, rolled
back to where they part, and read on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from array_api_compat import array_namespace

from specport.core.model_kinds import ChainModel
from specport.core.ports import Array, CacheHandle, DraftRequest, Model, Row
from specport.core.tree import TokenTree
from specport.drafters.model.context_head import ContextHead
from specport.drafters.model.expand import DraftHead

PREFILL_CHUNK = 512  # tokens a step, as in the engine


@dataclass(frozen=True)
class Level:
    """Nodes of one sequence to be scored: a tree below what it keeps already.

    kept: the path of the tree that stays; asked: the nodes behind which logits are wanted.
    """

    key: int
    tree: TokenTree
    kept: Sequence[int]
    asked: Sequence[int]


class Reading(Protocol):
    """A model that reads contexts and drafts on: a draft with its own cache, or the target's first layers."""

    @property
    def batch(self) -> bool:
        """Whether several requests may be read in one go."""
        ...

    @property
    def tree(self) -> bool:
        """Whether rows of `score` may branch."""
        ...

    def fits(self, request: DraftRequest) -> bool:
        """Whether there is room for what the request's plan allows."""
        ...

    def behind(self, request: DraftRequest) -> int:
        """Tokens of the context to read before the first draft token; 1 right after a rejection."""
        ...

    def head(self, key: int) -> DraftHead:
        """What the columns of this sequence's logits are, from its last `catch_up` on."""
        ...

    def catch_up(self, requests: Sequence[DraftRequest]) -> list[Array]:
        """Read each context to its end; the logits [columns] behind each root token."""
        ...

    def chains(self, requests: Sequence[DraftRequest]) -> list[list[int]] | None:
        """Read each context and draft the likeliest chain of its plan's depth, all in one call of the model.

        None where the model cannot.
        """
        ...

    def score(self, rows: Sequence[Level]) -> list[list[Array]]:
        """Logits [columns] behind the nodes that each sequence's row asks for."""
        ...

    def forget(self, key: int) -> None: ...

    def rewind(self, key: int, length: int) -> None:
        """Only the context's first `length` tokens are still what they were at the last `catch_up`."""
        ...


@dataclass
class _State:
    """One sequence's cache: context[start:base], then the drafted tokens in `ahead`."""

    handle: CacheHandle
    start: int = 0
    base: int = 0
    ahead: list[int] = field(default_factory=list)


class DraftCache:
    """The cache of a draft model.

    head:   the columns of the model's own logits. A cut one is joined by the tokens of each context, where
            the model can (`ContextHead`).
    window: most tokens of the context that the draft reads at once. A draft that is further behind starts
            anew with the last `window` tokens.
    """

    def __init__(self, model: Model, head: DraftHead, window: int) -> None:
        self._model, self._head = model, ContextHead(model, head)
        self._vocab = head.columns
        self._window = max(1, min(window, model.max_context // 2))
        self.batch = model.capabilities.batch
        self.tree = model.capabilities.tree
        # Nodes that a step may have; None = any number.
        self.widest = max(model.capabilities.buckets, default=None)
        self._states: dict[int, _State] = {}

    def fits(self, request: DraftRequest) -> bool:
        return request.plan.max_nodes < self._model.max_context

    def behind(self, request: DraftRequest) -> int:
        state = self._states.get(request.key)
        if state is None:
            return min(len(request.context), self._window)
        return len(request.context) - self._resume(state, request)[1]

    def head(self, key: int) -> DraftHead:
        return self._head.head(key)

    def catch_up(self, requests: Sequence[DraftRequest]) -> list[Array]:
        for request in requests:
            self._head.follow(request.key, request.context)
        states = [self._rolled_back(request) for request in requests]
        logits: dict[int, Array] = {}
        behind = [*zip(requests, states, strict=True)]
        while behind:
            rows = []
            for request, state in behind:
                start = state.start + state.handle.length
                chunk = request.context[start : start + PREFILL_CHUNK]
                rows.append(Row(state.handle, TokenTree.chain(chunk), logits="last"))
            output = self._model.step(rows)
            for i, ((request, _), row) in enumerate(zip(behind, rows, strict=True)):
                self._model.commit(row.handle, range(len(row.tree)))
                logits[request.key] = self._head.logits(request.key, output, output.offsets[i : i + 1])[0]
            waiting = [(r, s) for r, s in behind if s.start + s.handle.length < len(r.context)]
            if waiting:  # the next step overwrites this one's output
                for request, _ in behind:
                    found = logits[request.key]
                    logits[request.key] = array_namespace(found).asarray(found, copy=True)
            behind = waiting
        return [logits[request.key] for request in requests]

    def chains(self, requests: Sequence[DraftRequest]) -> list[list[int]] | None:
        most = self._model.capabilities.chain
        (depth, *others) = {request.plan.depth for request in requests}
        if not most or others or self._model.capabilities.head_rows:
            return None
        states = [self._rolled_back(request) for request in requests]
        unread = [r.context[s.start + s.handle.length :] for r, s in zip(requests, states, strict=True)]
        if max(map(len, unread)) > most:
            return None
        rows = [Row(s.handle, TokenTree.chain(rest)) for s, rest in zip(states, unread, strict=True)]
        found = cast(ChainModel, self._model).chain(rows, depth, self._vocab)
        drafted: list[list[int]] = found.tokens.tolist()
        for state, rest, tokens in zip(states, unread, drafted, strict=True):
            self._model.commit(state.handle, range(len(rest) + depth - 1))
            state.ahead = tokens[:-1]  # the last one is not read
        return drafted

    def score(self, rows: Sequence[Level]) -> list[list[Array]]:
        states = [self._states[row.key] for row in rows]
        output = self._model.step([Row(s.handle, row.tree) for s, row in zip(states, rows, strict=True)])
        for state, row in zip(states, rows, strict=True):
            self._model.commit(state.handle, row.kept)
            state.ahead += [row.tree.tokens[node] for node in row.kept]
        return [
            self._head.logits(row.key, output, [first + node for node in row.asked])
            for row, first in zip(rows, output.offsets[:-1], strict=True)
        ]

    def forget(self, key: int) -> None:
        self._head.forget(key)
        state = self._states.pop(key, None)
        if state:
            self._model.close(state.handle)

    def rewind(self, key: int, length: int) -> None:
        self._head.rewind(key, length)
        state = self._states.get(key)
        if state is None or length >= state.base:
            return
        if length <= state.start:
            self.forget(key)
        else:
            state.base, state.ahead = length, []

    def _rolled_back(self, request: DraftRequest) -> _State:
        """Keep of the cache what the context confirms, or nothing if too little is left of it."""
        state = self._states.get(request.key)
        if state is None:
            state = self._states[request.key] = _State(self._model.open())
        state.start, kept = self._resume(state, request)
        self._model.truncate(state.handle, kept - state.start)
        state.base, state.ahead = len(request.context), []
        return state

    def _resume(self, state: _State, request: DraftRequest) -> tuple[int, int]:
        """Where the cache starts in the context, and up to where it is confirmed."""
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
