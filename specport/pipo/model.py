"""A pair model as the engine sees it: sequences of tokens, whose caches hold an entry for each pair.

Two models of a backend are behind it: the decoder, whose ids are pairs (`models.kinds.pipo.Pairs`), and its
module for multi-token prediction, which writes the second token of a pair. An entry of the module is made of
the decoder's state at a pair and of the first token behind that pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np
from array_api_compat import array_namespace

from specport.core.arrays import Array, to_host
from specport.core.ports import (
    HEAD_INPUT,
    Block,
    CachedSequence,
    CacheHandle,
    Capabilities,
    CheckedModel,
    Model,
    Refusal,
    Row,
    StepOutput,
)
from specport.models.kinds.pipo import Pairs, widths_of


@dataclass(kw_only=True)
class PairSequence(CachedSequence):
    """Hold one sequence. `length` counts tokens; PAD is none.

    widths: tokens of each pair that was read: 2, or 1 for a token with PAD.
    state:  [1, width] of the decoder at the last pair. None = there is no pair yet, or it was cut off.
    entered: whether the module has its entry of the last pair.
    paired: whether second tokens can be written; not any more once the module had no room.
    """

    body: CacheHandle
    module: CacheHandle
    widths: list[int] = field(default_factory=list)
    state: Array | None = None
    entered: bool = True
    paired: bool = True


@dataclass(frozen=True)
class PairRow:
    """Hold what a step reads of one sequence.

    tokens: the next ones. ends: whether logits are wanted behind them.
    widths: tokens of each of their pairs; None = two, and an odd last token stands with PAD.
    """

    handle: PairSequence
    tokens: list[int]
    ends: bool
    widths: list[int] | None = None

    @property
    def pairs(self) -> list[int]:
        return widths_of(len(self.tokens)) if self.widths is None else self.widths

    @property
    def firsts(self) -> list[int]:
        """Return the first token of each pair."""
        return [
            self.tokens[end - width] for width, end in zip(self.pairs, accumulate(self.pairs), strict=True)
        ]


@dataclass(frozen=True)
class Second:
    """Hold what a pair model proposes for a second token.

    logits: [vocab]. confidence: 0 to 1. seconds: inside the runtime.
    """

    logits: Array
    confidence: float
    seconds: float


class PairModel(CheckedModel[PairSequence]):
    """Read pairs, and propose second tokens. Its sequences are opened and closed as those of any model.

    body:   the decoder; `body.mtp` is its module.
    limit:  most tokens that a sequence reads; None = two for each entry of the cache.
    module: False where no second token is ever kept: the module then does not run.

    `seconds`: inside the runtime, of the last `read`.
    """

    def __init__(self, body: Model, pairs: Pairs, *, limit: int | None = None, module: bool = True) -> None:
        if body.mtp is None:
            raise ValueError("a pair model needs a module for multi-token prediction")
        self._body, self._mtp, self.pairs = body, body.mtp, pairs
        self._uses_module, self.seconds = module, 0.0
        self.vocab_size = body.vocab_size
        self.max_context = min(2 * body.max_context, limit or 2 * body.max_context)
        self.capabilities = Capabilities(batch=body.capabilities.batch)

    @property
    def cache_usage(self) -> float | None:
        return self._body.cache_usage

    def room(self, handle: PairSequence | None = None) -> int:
        """Return how many tokens fit, two to an entry; fewer do where second tokens are not kept."""
        parts = [(self._body, handle and handle.body)]
        parts += [(self._mtp, handle and handle.module)] if self._uses_module else []
        left = 2 * min(model.room(part) for model, part in parts)
        return min(left, self.max_context - (handle.length if handle else 0))

    def open_checked(self, capacity: int) -> PairSequence:
        entries = -(-capacity // 2)
        body = self._body.open(entries)
        try:
            return PairSequence(body=body, module=self._mtp.open(entries if self._uses_module else 0))
        except BaseException:
            self._body.close(body)
            raise

    def close(self, handle: PairSequence) -> None:
        self._body.close(handle.body)
        self._mtp.close(handle.module)
        handle.settle(0)

    def truncate_checked(self, handle: PairSequence, length: int) -> None:
        """Cut behind a whole pair at or before `length`, so that `handle.length` may be smaller.

        One pair more goes: the module's entry of the last pair that stays depends on the token behind it.
        """
        count = total = 0
        while count < len(handle.widths) and total + handle.widths[count] <= length:
            total += handle.widths[count]
            count += 1
        count = max(0, count - 1)
        handle.widths = handle.widths[:count]
        self._body.truncate(handle.body, count)
        if self._uses_module and handle.paired:
            self._mtp.truncate(handle.module, count)
        handle.state, handle.entered = None, True
        handle.settle(sum(handle.widths))

    def read(self, rows: Sequence[PairRow]) -> list[Array | Refusal | None]:
        """Read tokens in pairs. Return for each row what may follow.

        That is the [vocab] logits behind the last pair where they are wanted, else None, valid until the next
        call. A refused row leaves its sequence as it was.
        """
        found: list[Array | Refusal | None] = []
        for row in rows:
            found.append("context" if row.handle.length + len(row.tokens) > self.max_context else None)
        fitting = [i for i, refused in enumerate(found) if refused is None]
        self.seconds = 0.0
        if fitting:
            for i, answer in zip(fitting, self._read([rows[i] for i in fitting]), strict=True):
                found[i] = answer
        return found

    def _read(self, rows: Sequence[PairRow]) -> list[Array | Refusal | None]:
        """Do as `read`, for rows that fit the context."""
        ids = [self.pairs.ids(row.tokens, row.pairs) for row in rows]
        hidden = "all" if self._uses_module else "none"
        output = self._body.step(
            [
                Row(row.handle.body, Block.chain(own), logits="last" if row.ends else "none", hidden=hidden)  # type: ignore[arg-type]
                for row, own in zip(rows, ids, strict=True)
            ]
        )
        self.seconds = output.seconds
        found: list[Array | Refusal | None] = []
        for i, row in enumerate(rows):
            if i in output.refused:
                found.append(output.refused[i])
                continue
            self._body.commit(row.handle.body, range(len(ids[i])))
            if self._uses_module:
                self._enter(row.handle, row.firsts, output.hidden_of(i)[HEAD_INPUT])
            row.handle.widths += row.pairs
            row.handle.settle(row.handle.length + len(row.tokens))
            found.append(output.logits_of(i)[-1, :] if row.ends else None)
        return found

    def _enter(self, handle: PairSequence, firsts: list[int], states: Array) -> None:
        """Let the module read up to the last pair but one; the last one waits for the token behind it."""
        xp = array_namespace(states)
        before = states[:-1, :]
        if handle.entered:
            firsts = firsts[1:]
        elif handle.state is not None:
            before = xp.concat([handle.state, before])
        # Outputs are valid until the next step only.
        handle.state, handle.entered = xp.asarray(states[-1:, :], copy=True), False
        if firsts and handle.paired:
            self._module_step(handle, firsts, before)

    def _module_step(self, handle: PairSequence, firsts: list[int], states: Array) -> StepOutput | None:
        """Let the module read; None where it has no room, after which the sequence has single tokens only."""
        row = Row(handle.module, Block.chain(firsts), logits="last", hidden="last", states=states)
        output = self._mtp.step([row])
        if output.refused:
            handle.paired = False
            return None
        self._mtp.commit(handle.module, range(len(firsts)))
        return output

    def second(self, handle: PairSequence, first: int) -> Second | None:
        """Return what may follow the token that was chosen behind the last pair; None = only PAD."""
        state = handle.state
        if not (self._uses_module and handle.paired) or state is None or handle.entered:
            return None
        output = self._module_step(handle, [first], state)
        if output is None:
            return None
        handle.entered = True
        states = (state, output.hidden_of(0)[HEAD_INPUT])
        confidence = self.pairs.weights.confidence(*(np.asarray(to_host(s), np.float32)[-1] for s in states))
        return Second(output.logits_of(0)[-1, :], confidence, output.seconds)

    def fork_checked(self, handle: PairSequence, length: int) -> NoReturn:
        raise NotImplementedError("sequences of pairs are not forked")

    def step(self, rows: Sequence[Row]) -> NoReturn:
        raise NotImplementedError("a pair model reads pairs: see `read`")

    def commit(self, handle: Any, nodes: Sequence[int]) -> NoReturn:
        raise NotImplementedError("a pair model keeps what it reads")
