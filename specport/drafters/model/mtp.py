"""Drafter with the target's module for multi-token prediction (`Model.mtp`): its own, or an MTP head.

The module has a cache. Its entry at token t is made of the target's state at t and of token t + 1, so it can
only read what the target has read with its states. It reads a prompt in pieces beside the target, or, where
the prompt is short, with the first draft. Behind the text it drafts with its own states; these entries are
replaced by those of the target's states once the target has read the tokens.

Source: DeepSeek-V3 (arXiv 2412.19437), section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from array_api_compat import array_namespace, device

from specport.core.ports import (
    HEAD_INPUT,
    Array,
    Block,
    CacheHandle,
    DraftRequest,
    Model,
    Needs,
    Outcome,
    Prefilled,
    Row,
    Wanted,
)
from specport.drafters.model.context_head import ContextHead
from specport.drafters.model.drafter import ReadingDrafter
from specport.drafters.model.head import DraftHead
from specport.drafters.model.kv_cache import PREFILL_CHUNK
from specport.drafters.model.reading import Level
from specport.errors import ContextFull

_ROOT = -1


@dataclass
class _Text:
    """Hold one sequence.

    start:   position of its first token here. Later than 0 where the target had the beginning in its cache.
    handle:  of the module's cache; None = it has read nothing.
    num_read: tokens from `start` on that are entries of it.
    tokens, states: those behind them that the target has read: ids, and arrays [n, width] of its states.
    last:    the last of the tokens that were read, with its state [1, width]; None = it cannot be read again.
    """

    start: int
    handle: CacheHandle | None = None
    num_read: int = 0
    tokens: list[int] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    last: tuple[int, Array] | None = None

    def again(self) -> None:
        """Let the last token be read once more where nothing is left to read."""
        if not self.tokens and self.last is not None:
            token, state = self.last
            self.tokens, self.states = [token], [state]
            self.num_read -= 1

    @property
    def end(self) -> int:
        """Return the position behind the last token that the target has read."""
        return self.start + self.num_read + len(self.tokens)


class MtpReading:
    """Implement `Reading` with a module for multi-token prediction.

    head: maps the columns of the module's logits. A cut one is extended by the tokens of each context where
          the module has `head_rows`.
    """

    def __init__(self, model: Model, head: DraftHead) -> None:
        self._model, self._head = model, ContextHead(model, head)
        self.batch, self.tree = model.capabilities.batch, model.capabilities.tree
        self._texts: dict[int, _Text] = {}
        self._nodes: dict[int, dict[int, Array]] = {}  # key -> node of the draft -> its state [1, width]

    def fits(self, request: DraftRequest) -> bool:
        """Return whether the target has read the token before the root token with its states."""
        text = self._texts.get(request.key)
        if text is None or text.end != len(request.context) - 1:
            return False
        if not text.tokens and text.last is None:
            return False
        return text.end - text.start + request.plan.max_nodes < self._model.max_context

    def behind(self, request: DraftRequest) -> int:
        text = self._texts.get(request.key)
        if text is None or not text.tokens:
            return 1
        whole = not text.num_read and not text.start
        return len(request.context) if whole else len(text.tokens)

    def head(self, key: int) -> DraftHead:
        return self._head.head(key)

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        """Take the states of prompt tokens; read on beside the target where a prompt is long."""
        for event in events:
            self._take(event.key, event.start, event.tokens, event.hidden.get(HEAD_INPUT))
        keys = [event.key for event in events]
        self._read_ahead([key for key in keys if self._is_long(key) or self._has_read(key)])

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Take the states of the root token and of the accepted tokens of each tree."""
        for outcome in outcomes:
            rows = [0, *(node + 1 for node in outcome.path)]
            states = outcome.hidden.get(HEAD_INPUT)
            tokens = [outcome.root, *(outcome.tree.tokens[node] for node in outcome.path)]
            self._take(outcome.key, outcome.context, tokens, None if states is None else _rows(states, rows))
        self._read_ahead([outcome.key for outcome in outcomes if self._is_long(outcome.key)])

    def catch_up(self, requests: Sequence[DraftRequest]) -> list[Array | None]:
        for request in requests:
            self._head.follow(request.key, request.context)
            self._texts[request.key].again()  # the target refused the row of the last draft
        nexts: dict[int, int | None] = {request.key: request.context[-1] for request in requests}
        found = self._read(nexts, "last")
        return [found.get(request.key) for request in requests]

    def chains(self, requests: Sequence[DraftRequest]) -> None:
        """Return None: a module drafts token by token, since each needs the state before it."""

    def score(self, rows: Sequence[Level]) -> list[list[Array]]:
        steps = []
        for row in rows:
            states = self._nodes[row.key]
            # A chain comes as its last token, a tree as a whole.
            before = [_ROOT] if row.kept else row.tree.parents
            joined = _joined([states[node] for node in before])
            steps.append(Row(self._texts[row.key].handle, row.tree.as_block(), hidden="all", states=joined))
        output = self._model.step(steps)
        logits: list[list[Array]] = []
        for i, row in enumerate(rows):
            if i in output.refused:
                self._drop(row.key)
                logits.append([])
                continue
            self._model.commit(steps[i].handle, row.kept)
            states = _copy(output.hidden_of(i)[HEAD_INPUT])
            nodes = [_ROOT] if row.kept else range(len(row.tree))
            self._nodes[row.key] |= {node: states[n : n + 1, :] for n, node in enumerate(nodes)}
            first = output.offsets[i]
            logits.append(self._head.logits(row.key, output, [first + node for node in row.asked]))
        return logits

    def forget(self, key: int) -> None:
        self._drop(key)
        self._head.forget(key)

    def rewind(self, key: int, length: int) -> None:
        self._head.rewind(key, length)
        text = self._texts.get(key)
        if text is not None and length < text.end:
            self._drop(key)

    def _take(self, key: int, position: int, tokens: Sequence[int], states: Array | None) -> None:
        """Add tokens with the target's states; a text with a gap begins anew."""
        text = self._texts.get(key)
        if text is None or text.end != position:
            self._drop(key)
            text = _Text(position)
        if states is None:
            return
        self._texts[key] = text
        text.tokens += tokens
        text.states.append(_copy(states))  # the target's next step overwrites it

    def _is_long(self, key: int) -> bool:
        text = self._texts.get(key)
        return text is not None and len(text.tokens) > PREFILL_CHUNK

    def _has_read(self, key: int) -> bool:
        text = self._texts.get(key)
        return text is not None and text.num_read > 0

    def _read_ahead(self, keys: Sequence[int]) -> None:
        """Read all of these texts but the last token that has states: the one after it is not known here."""
        width = len(keys) if self.batch else 1
        for start in range(0, len(keys), max(width, 1)):
            self._read(dict.fromkeys(keys[start : start + width]), "none")

    def _read(self, nexts: dict[int, int | None], wanted: Wanted) -> dict[int, Array]:
        """Read what these texts have left; return the logits [columns] behind it, where they are wanted.

        nexts: key -> the token after the last one with states; None = that one is left for later.
        Texts without room are dropped, and have no logits.
        """
        rows: list[Row] = []
        keys: list[int] = []
        for key, after in nexts.items():
            text = self._texts[key]
            tokens = [*text.tokens[1:], *(() if after is None else (after,))]
            handle = self._cut(key, text) if tokens else None
            if handle is None:
                continue
            states = text.states = [_joined(text.states)]
            own = states[0][: len(tokens), :]
            rows.append(Row(handle, Block.chain(tokens), logits=wanted, hidden=wanted, states=own))
            keys.append(key)
        if not rows:
            return {}
        output = self._model.step(rows)
        found = {}
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if i in output.refused:
                self._drop(key)
                continue
            count, text = len(row.block), self._texts[key]
            states = text.states
            self._model.commit(row.handle, range(count))
            text.num_read += count
            text.last = text.tokens[count - 1], _copy(states[0][count - 1 : count, :])
            del text.tokens[:count]
            text.states = [_copy(states[0][count:, :])] if text.tokens else []
            if wanted == "last":
                self._nodes[key] = {_ROOT: _copy(output.hidden_of(i)[HEAD_INPUT][-1:, :])}
                (found[key],) = self._head.logits(key, output, [output.offsets[i + 1] - 1])
        return found

    def _cut(self, key: int, text: _Text) -> CacheHandle | None:
        """Return a text's handle without drafted entries; None for a text without room, which is dropped."""
        try:
            if text.handle is None:
                text.handle = self._model.open()
        except ContextFull:
            self._drop(key)
            return None
        self._model.truncate(text.handle, text.num_read)
        return text.handle

    def _drop(self, key: int) -> None:
        self._nodes.pop(key, None)
        text = self._texts.pop(key, None)
        if text is not None and text.handle is not None:
            self._model.close(text.handle)


class MtpDrafter(ReadingDrafter):
    """Draft chains, or trees where the plan has branches, with a module for multi-token prediction.

    target_vocab, token_map: as for `DraftHead`.
    """

    needs = Needs(hidden=True, prompt=True)

    def __init__(
        self,
        model: Model,
        target_vocab: int,
        token_map: Sequence[int] | None = None,
        *,
        name: str = "mtp",
    ) -> None:
        self._states = MtpReading(model, DraftHead(target_vocab, token_map))
        super().__init__(self._states, name)

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        self._states.prefilled(events)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._states.observe(outcomes)


def _rows(states: Array, rows: Sequence[int]) -> Array:
    """Return these rows of an array [n, width]."""
    if [*rows] == [*range(len(rows))]:
        return states[: len(rows), :]
    xp = array_namespace(states)
    return xp.take(states, xp.asarray(np.asarray(rows), device=device(states)), axis=0)


def _copy(array: Array) -> Array:
    return array_namespace(array).asarray(array, copy=True)


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else array_namespace(arrays[0]).concat(list(arrays), axis=0)
