"""A constraint that can be checked by hand: an automaton over a toy's token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from specport.core.sampling.constraint import Continuation, Mask
from specport.core.sampling.processors import Prefix

Moves = Mapping[int, Mapping[int, int]]  # state -> token -> next state


class Automaton:
    """Allows the moves of an automaton from state 0; a state without moves is the end of the text.

    vocab: tokens that its masks cover. asked: prefixes whose masks were worked out.
    """

    def __init__(self, moves: Moves, start: int, vocab: int = 16) -> None:
        self._moves, self._start, self._vocab = moves, start, vocab
        self.asked: list[tuple[int, ...]] = []

    def state(self, tokens: Sequence[int]) -> int | None:
        """Return the state behind a text; None where the text is not allowed."""
        state: int | None = 0
        for token in tokens:
            state = self._moves.get(state, {}).get(token) if state is not None else None
        return state

    def mask(self, prefix: Prefix) -> Mask | None:
        text = prefix[self._start :]
        self.asked.append(tuple(text))
        state = self.state(text)
        if state is None:
            return None
        bits = np.zeros(self._vocab, dtype=np.uint8)
        bits[list(self._moves.get(state, {}))] = 1
        return np.packbits(bits, bitorder="little")

    def forced(self, prefix: Prefix) -> Continuation:
        state, tokens = self.state(prefix[self._start :]), []
        while state is not None and len(moves := self._moves.get(state, {})) == 1 and len(tokens) < 32:
            ((token, state),) = moves.items()
            tokens.append(token)
        return Continuation(tuple(tokens), len(tokens))

    def complete(self, tokens: Sequence[int]) -> bool:
        state = self.state(tokens[self._start :])
        return state is not None and not self._moves.get(state)
