"""The port of a head that drafts from a target's hidden states, on the target's embeddings and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specport.core.arrays import Array


@dataclass(frozen=True)
class HeadChains:
    """Hold the result of `HiddenHead.draft`: tokens and confidences on the host, states where they were.

    tokens:      [n, depth] target ids.
    confidences: [n, depth] the head's probability of each token among its columns.
    states:      [n, width] the states that the last token was drafted from, to draft on.
    """

    tokens: NDArray[np.int64]
    confidences: NDArray[np.float32]
    states: Array


class HiddenHead(Protocol):
    """Draft with a small recurrent network (Hydra, arXiv 2402.05109; ReDrafter, arXiv 2403.09919).

    The first state comes from the target's hidden states at the last token that it has read. Each step takes
    a state and the token that follows it, and gives the logits of the token after that. States are immutable:
    several tokens may be tried after one state. The head holds nothing of any sequence.
    """

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers of the target whose states `begin` reads (`Capabilities.hidden_layers`)."""
        ...

    @property
    def columns(self) -> tuple[int, ...] | None:
        """Return the target id of each column of the logits; None = all ids, in order."""
        ...

    @property
    def together(self) -> int:
        """Return how many tokens of a chain `draft` should be asked for at once.

        More than 1 where waiting for the device takes longer than drafting tokens in vain.
        """
        ...

    def begin(self, hidden: Mapping[int, Array]) -> Array:
        """Return the first states [n, width]. hidden: layer -> [n, size], of each of `layers`."""
        ...

    def step(self, states: Array, tokens: Sequence[int]) -> tuple[Array, Array]:
        """Return logits [n, columns] of what follows these tokens, and the states [n, width] behind them.

        states: [n, width] before the tokens. The logits are valid until the next call, the states for good.
        """
        ...

    def draft(self, states: Array, tokens: Sequence[int], depth: int) -> HeadChains:
        """Return the greedy chains of `depth` tokens behind these tokens; arguments as for `step`."""
        ...
