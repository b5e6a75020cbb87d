"""Where the training of a recurrent head starts: each of its maps is fitted to the target's next state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch.hidden_head import RecurrentCell
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.text.hidden import next_states
from specport.quantize.train import ridge

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = 60_000  # places of text that are read, about
THROUGH = 0.1  # strength of the ridge where a small matrix would be undone by large values


def fit(
    cell: RecurrentCell,
    texts: Sequence[Dialogue],
    table: NDArray[Any],
    norm: NDArray[Any] | None,
    seed: int,
) -> None:
    """Make a cell say the target's next state as far as maps fitted one after the other can.

    The first state is the target's at the last of its layers. `join` maps state and token to the next state,
    `enter` adds what the layers below know of what is missing, and the blocks' second matrices what features
    of random first ones explain. Where the last layer that the head reads is not the target's last, this is
    a start like another.

    texts: with hidden states of these layers. table: embeddings.
    norm:  weights of the target's last norm, which its head expects; None = ones.
    """
    shape = cell.shape
    generator = torch.Generator().manual_seed(seed)
    before, tokens, after = next_states(texts, shape.width, EXAMPLES)
    with torch.no_grad():
        for name in (f"block.{i}" for i in range(shape.blocks)):
            up = cell.weight(f"{name}.up")
            up.copy_(torch.randn(up.shape, generator=generator) / math.sqrt(up.shape[1]))
            cell.weight(f"{name}.gain").fill_(1.0)
        parts = [ridge.rms_norm(part) for part in torch.from_numpy(before).split(shape.width, dim=1)]
        embedded = ridge.rms_norm(torch.from_numpy(table[tokens].astype(np.float32)))
        cell.weight("enter.gain").copy_(torch.cat([ridge.unit_gain(part) for part in parts]))
        cell.weight("state.gain").copy_(ridge.unit_gain(parts[-1]))
        cell.weight("token.gain").copy_(ridge.unit_gain(embedded))
        gain = torch.ones(shape.width) if norm is None else torch.from_numpy(norm)
        share = _fit(cell, parts, embedded, ridge.rms_norm(torch.from_numpy(after)))
        cell.weight("out.gain").copy_(share * gain)


def _fit(cell: RecurrentCell, parts: Sequence[Tensor], embedded: Tensor, wanted: Tensor) -> float:
    """Fit the matrices of a cell; return the share of the states that they explain."""
    width = cell.shape.width
    state, token = cell.weight("state.gain") * parts[-1], cell.weight("token.gain") * embedded
    joined = torch.cat([state, token], dim=1)
    cell.weight("join").copy_(ridge.linear_map(joined, wanted))
    read = cell.weight("enter.gain") * torch.cat([*parts], dim=1)
    missing = wanted - joined @ cell.weight("join").T
    # What the layers below add is seen through the part of `join` that reads the state.
    seen = cell.weight("join")[:, :width] * cell.weight("state.gain")
    added = ridge.linear_map(read, missing)
    enter = ridge.linear_map(seen, added, THROUGH).T
    enter[:, -width:] += torch.diag(1.0 / cell.weight("enter.gain")[-width:])
    cell.weight("enter").copy_(enter)
    y = cell.step(cell.begin(parts), embedded)  # the blocks add nothing yet
    for name in (f"block.{i}" for i in range(cell.shape.blocks)):
        up = (cell.weight(f"{name}.gain") * ridge.rms_norm(y)) @ cell.weight(f"{name}.up").T
        first, second = up.chunk(2, dim=1)
        features = torch.nn.functional.silu(first) * second
        cell.weight(f"{name}.down").copy_(ridge.linear_map(features, wanted - y))
        y = y + features @ cell.weight(f"{name}.down").T
    return ridge.share_explained(ridge.rms_norm(y), wanted)
