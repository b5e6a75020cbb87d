"""What some models can do beside `Model`; `Capabilities` says which. Backends do it, drafters use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specport.core.ports import Array, Model, Row, StepOutput


class EarlyExitModel(Model, Protocol):
    """A model whose own first layers draft for it: LayerSkip (arXiv 2404.16710), all of it.

    The weights are there once, and so is the cache: drafted tokens leave their keys and values of the first
    `Capabilities.exit_layer` layers where a step would write them, and what came out of these layers (the
    paper's exit queries) is held, so that the step which verifies them runs the other layers only.
    """

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        """Append each row's chain behind what its sequence has drafted so far, and score it at the exit.

        The logits come from the model's final norm and head on the output of the first layers; there are no
        hidden states. A row may be padded as in `step`. Nothing is committed: `step` takes over the longest
        beginning that its tree has in common with the drafted tokens, a chain from node 0 on, and computes
        the others from the first layer; after `step`, `commit` and `truncate` nothing is drafted any more.
        The logits of a step do not depend on what was taken over, in exact mode to the bit.

        Raises ValueError for a row that branches, and ContextFull as `step` does.
        """
        ...


@dataclass(frozen=True)
class Chains:
    """Result of `ChainModel.chain`, on the host.

    tokens:      [rows, depth] token ids, also where the model's head is cut.
    confidences: [rows, depth] the model's probability of each, among the columns that were asked for.
    seconds:     time inside the runtime's own calls.
    """

    tokens: NDArray[np.int64]
    confidences: NDArray[np.float32]
    seconds: float = 0.0


class ChainModel(Model, Protocol):
    """A model that can feed the likeliest token into its next step itself: the host waits once a chain."""

    def chain(self, rows: Sequence[Row], depth: int, vocab: int | None = None) -> Chains:
        """Append each row's chain, then `depth` tokens, each the likeliest behind those before it.

        The last one is not read into the cache; the row's tokens and the others are, and wait for `commit`
        as the nodes of one chain. vocab: first columns of the logits that count; None = all.

        Raises ValueError for a row that branches or has more than `Capabilities.chain` tokens, and
        ContextFull as `step` does.
        """
        ...


class CutHeadModel(Model, Protocol):
    """A model whose head is cut to some ids, and which still has the rows of all others."""

    def head_rows(self, tokens: Sequence[int]) -> Array:
        """[tokens, width] rows of the whole head: times a step's `head_input` the logits of these ids."""
        ...
