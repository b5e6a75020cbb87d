"""Follow the target's hidden states: those of the last token that it has read, for each sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace

from specport.core.ports import Array, Outcome, Prefilled


@dataclass(frozen=True)
class _Last:
    """Hold the states of one token. position: its index in the text; hidden: layer -> [1, size]."""

    position: int
    hidden: Mapping[int, Array]


class LastHidden:
    """Hold the hidden states at the last token that the target has read of each sequence.

    layers: of the target, whose states are kept.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        self._texts: dict[int, _Last] = {}

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        """Take the states of the last token of each part of a prompt."""
        for event in events:
            count = len(event.tokens)
            self._keep(event.key, event.start + count - 1, event.hidden, count - 1)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Take the states of the last accepted token of each tree; of the root token where there is none."""
        for outcome in outcomes:
            row = outcome.path[-1] + 1 if outcome.path else 0
            self._keep(outcome.key, outcome.context + len(outcome.path), outcome.hidden, row)

    def before(self, key: int, position: int) -> Mapping[int, Array] | None:
        """Return layer -> [1, size] at the token before `position`; None where another was read last."""
        last = self._texts.get(key)
        return last.hidden if last is not None and last.position == position - 1 else None

    def forget(self, key: int) -> None:
        self._texts.pop(key, None)

    def _keep(self, key: int, position: int, hidden: Mapping[int, Array], row: int) -> None:
        if any(layer not in hidden for layer in self._layers):
            self._texts.pop(key, None)
            return
        # The target's next step overwrites these arrays.
        states = {
            layer: array_namespace(hidden[layer]).asarray(hidden[layer][row : row + 1, :], copy=True)
            for layer in self._layers
        }
        self._texts[key] = _Last(position, states)
