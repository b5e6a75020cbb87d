"""The draft model's cache of each sequence, and how it follows the context.

The cache needs no message about accepted tokens: each proposal compares it with the context, rolls it back to
the first difference and reads on from there.

A sequence for which a full cache has no room is not drafted: its own memory is freed, so that other sequences
can go on. Reading its context again is expensive. So this is tried only when another sequence freed memory or
after a number of rounds, and only where there is room for all of the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from array_api_compat import array_namespace

from specport.core.ports import Array, Block, CacheHandle, DraftRequest, Model, Row, Wanted
from specport.core.prefix_cache import PrefixCache
from specport.drafters.model.context_head import ContextHead
from specport.drafters.model.draft_prefixes import DraftPrefixes
from specport.drafters.model.head import DraftHead
from specport.drafters.model.reading import Level
from specport.errors import ContextFull

PREFILL_CHUNK = 512  # tokens per step, as in the scheduler
BESIDE_TAIL = 32  # most tokens of a context that are read in one step with a tail
PAUSE = 64  # rounds before a sequence without room is tried again, unless memory was freed
_RESERVE = 64  # free tokens that each sequence should have before a waiting one is read again


@dataclass
class _State:
    """Hold one sequence's cache: context[start:base], then the drafted tokens in `ahead`.

    num_shared: tokens that were given to the prefix cache.
    """

    handle: CacheHandle
    start: int = 0
    base: int = 0
    ahead: list[int] = field(default_factory=list)
    num_shared: int = 0


@dataclass
class _Waiting:
    """Hold a sequence that had no room: rounds until it is tried again, and `_num_freed` at its refusal."""

    rounds: int
    num_freed: int


class DraftCache:
    """Implement `Reading` for a draft model with its own cache.

    head:   maps the columns of the model's logits. A cut head is extended by the tokens of each context where
            the model has `head_rows` (`ContextHead`).
    window: maximum number of context tokens that the draft reads at once. A cache that is further behind is
            restarted with the last `window` tokens.
    prefixes: of the model: what contexts begin with is not read again; None = none.
    """

    def __init__(
        self, model: Model, head: DraftHead, window: int, prefixes: PrefixCache | None = None
    ) -> None:
        self._model, self._head = model, ContextHead(model, head)
        self._vocab = head.columns
        # What follows an encoder's output is short, and its beginning says what to do with it.
        longest = model.max_context if model.capabilities.conditioning else model.max_context // 2
        self._window = max(1, min(window, longest))
        self._prefixes = DraftPrefixes(model, prefixes, self._window)
        self.batch = model.capabilities.batch
        self.tree = model.capabilities.tree
        # Maximum number of nodes of a step; None = unbounded.
        self.widest = max(model.capabilities.buckets, default=None)
        self._states: dict[int, _State] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._num_freed = 0  # counts sequences whose memory was freed for others

    def fits(self, request: DraftRequest) -> bool:
        return request.plan.max_nodes < self._model.max_context

    def behind(self, request: DraftRequest) -> int:
        state = self._states.get(request.key)
        if state is None:
            return min(len(request.context) - self._prefixes.known(request), self._window)
        return len(request.context) - self._resume(state, request)[1]

    def head(self, key: int) -> DraftHead:
        return self._head.head(key)

    def catch_up(self, requests: Sequence[DraftRequest]) -> list[Array | None]:
        found = self.read(requests, [()] * len(requests))
        return [rows[0] if rows else None for rows in found]

    def read(self, requests: Sequence[DraftRequest], tails: Sequence[Sequence[int]]) -> list[list[Array]]:
        """Read each context to its end, and a tail behind it that does not stay in the cache.

        Returns for each request the logits [columns] after the root token and after each token of its tail;
        none for a sequence for which the cache has no room.
        """
        behind = self._readable(requests)
        for request, _ in behind:
            self._head.follow(request.key, request.context)
        tail_of = {request.key: tail for request, tail in zip(requests, tails, strict=True)}
        logits: dict[int, list[Array]] = {}
        while behind:
            rows, chunks = [], []
            for request, state in behind:
                start = state.start + state.handle.length
                chunk, ends = self._next_chunk(request.context, start, tail_of[request.key])
                tail = tail_of[request.key] if ends else ()
                chunks.append(chunk)
                block = Block.chain([*chunk, *tail])
                wanted: Wanted = "none" if not ends else "all" if tail else "last"
                rows.append(Row(state.handle, block, logits=wanted))
            output = self._model.step(rows)
            unfinished, ended = [], []
            for i, ((request, state), row) in enumerate(zip(behind, rows, strict=True)):
                if i in output.refused:
                    self._give_back(request.key)
                    continue
                self._model.commit(row.handle, range(len(chunks[i])))
                if row.logits == "none":
                    unfinished.append((request, state))
                    continue
                if not state.start:
                    state.num_shared = self._prefixes.share(state.handle, request.context, state.num_shared)
                ended.append(request.key)
                end = output.offsets[i + 1]
                asked = range(end - 1 - len(tail_of[request.key]), end)
                logits[request.key] = self._head.logits(request.key, output, asked)
            if unfinished:  # the next step overwrites this one's output
                for key in ended:
                    own = logits[key]
                    logits[key] = [array_namespace(row).asarray(row, copy=True) for row in own]
            behind = unfinished
        for key in logits:
            self._waiting.pop(key, None)
        return [logits.get(request.key, []) for request in requests]

    @staticmethod
    def _next_chunk(context: Sequence[int], start: int, tail: Sequence[int]) -> tuple[Sequence[int], bool]:
        """Return the context's next tokens to read from `start`, and whether they end it.

        The step that reads a tail gives logits of every token, so a long rest is read before it.
        """
        chunk = context[start : start + PREFILL_CHUNK]
        ends = start + len(chunk) == len(context)
        if ends and tail and len(chunk) > BESIDE_TAIL:
            return chunk[:-1], False
        return chunk, ends

    def chains(self, requests: Sequence[DraftRequest]) -> list[list[int]] | None:
        chain = self._model.chain
        (depth, *others) = {request.plan.depth for request in requests}
        if chain is None or others or self._model.head_rows is not None:
            return None
        if any(self.behind(request) > chain.max_tokens for request in requests):
            return None
        if any(request.key in self._waiting for request in requests):
            return None
        readable = self._readable(requests)
        if len(readable) < len(requests):
            return None
        states = [state for _, state in readable]
        unread = [request.context[state.start + state.handle.length :] for request, state in readable]
        rows = [Row(state.handle, Block.chain(rest)) for state, rest in zip(states, unread, strict=True)]
        drafted = chain.draft(rows, depth, self._vocab)
        if drafted is None:
            return None
        chains: list[list[int]] = drafted.tokens.tolist()
        for state, rest, tokens in zip(states, unread, chains, strict=True):
            self._model.commit(state.handle, range(len(rest) + depth - 1))
            state.ahead = tokens[:-1]  # the last token was not read
        return chains

    def score(self, rows: Sequence[Level]) -> list[list[Array]]:
        states = [self._states[row.key] for row in rows]
        output = self._model.step(
            [Row(s.handle, row.tree.as_block()) for s, row in zip(states, rows, strict=True)]
        )
        logits: list[list[Array]] = []
        for i, (state, row) in enumerate(zip(states, rows, strict=True)):
            if i in output.refused:
                self._give_back(row.key)
                logits.append([])
                continue
            self._model.commit(state.handle, row.kept)
            state.ahead += [row.tree.tokens[node] for node in row.kept]
            first = output.offsets[i]
            logits.append(self._head.logits(row.key, output, [first + node for node in row.asked]))
        return logits

    def forget(self, key: int) -> None:
        self._head.forget(key)
        self._waiting.pop(key, None)
        if self._close(key):
            self._num_freed += 1

    def rewind(self, key: int, length: int) -> None:
        self._head.rewind(key, length)
        state = self._states.get(key)
        if state is None or length >= state.base:
            return
        if length <= state.start:
            self._close(key)
        else:
            state.base, state.ahead = length, []

    def _close(self, key: int) -> bool:
        """Free a sequence's memory; return False where it has none."""
        state = self._states.pop(key, None)
        if state is not None:
            self._model.close(state.handle)
        return state is not None

    def _give_back(self, key: int) -> None:
        """Free the memory of a sequence without room, and let it wait.

        Memory of a sequence that was drafted before is new room for others, so it counts as freed. Memory of
        a waiting sequence that only began to read does not.
        """
        drafted = key not in self._waiting
        if self._close(key) and drafted:
            self._num_freed += 1
        self._waiting[key] = _Waiting(PAUSE, self._num_freed)

    def _readable(self, requests: Sequence[DraftRequest]) -> list[tuple[DraftRequest, _State]]:
        """Return the requests that do not wait for room, each with its cache rolled back to the context."""
        # Open all new caches first: rolling a cache back gives up the room that is reserved for it.
        for request in requests:
            if request.key not in self._states and not self._waits(request.key):
                self._open(request)
        readable = [(r, self._states[r.key]) for r in requests if r.key in self._states]
        for request, state in readable:
            self._roll_back(state, request)
            unread = len(request.context) - state.start - state.handle.length
            self._prefixes.make_room(state.handle, unread + request.plan.max_nodes)
        return readable

    def _waits(self, key: int) -> bool:
        """Count down a sequence's wait; return whether it still waits."""
        waiting = self._waiting.get(key)
        if waiting is None or waiting.num_freed != self._num_freed or waiting.rounds == 0:
            return False
        waiting.rounds -= 1
        return True

    def _open(self, request: DraftRequest) -> None:
        """Open a cache where there is room for the tokens to read; else let the sequence wait."""
        most = self._model.max_context
        wanted = min(len(request.context), self._window) + request.plan.max_nodes
        # A waiting sequence that takes freed room must not fill the cache again within a few rounds.
        more = _RESERVE * (1 + len(self._states)) if request.key in self._waiting else 0
        try:
            begun = self._prefixes.open(request, wanted)
            if begun is not None:
                self._states[request.key] = _State(begun, base=begun.length, num_shared=begun.length)
                return
            self._prefixes.make_room(None, min(wanted + more, most))
            if self._model.room() >= min(wanted + more, most):
                handle = self._model.open(min(wanted, most), request.conditioning)
                self._states[request.key] = _State(handle)
                return
        except ContextFull:  # the machine has less memory than the cache's limit
            pass
        self._waiting[request.key] = _Waiting(PAUSE, self._num_freed)

    def _roll_back(self, state: _State, request: DraftRequest) -> None:
        """Cut a sequence's cache to the part that agrees with the context, as `_resume` says."""
        state.start, kept = self._resume(state, request)
        self._model.truncate(state.handle, kept - state.start)
        state.base, state.ahead = len(request.context), []

    def _resume(self, state: _State, request: DraftRequest) -> tuple[int, int]:
        """Return the context range that the cache may keep: where it starts, and where it stops to agree.

        The range is empty where the cache must be restarted: it is too far behind, or too long.
        """
        context = request.context
        kept = state.base
        for token in state.ahead:
            if kept >= len(context) or context[kept] != token:
                break
            kept += 1
        # The root token is always read again: drafting starts from its logits.
        kept = min(kept, len(context) - 1, state.start + state.handle.length)
        room = self._model.max_context - request.plan.max_nodes
        if len(context) - kept > self._window or len(context) - state.start > room:
            start = max(0, len(context) - min(self._window, room))
            return start, start
        return state.start, kept
