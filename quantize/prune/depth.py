"""Which decoder layers a draft can do without.

Three ways to tell: the angular distance between the residual stream before and behind a layer or a block
of layers (Gromov et al., arXiv 2403.17887), block influence (Men et al., arXiv 2403.03853), and by what
counts in the end: how often the draft still proposes what the target writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.progress import Progress, silent

LOOKED_AT = 6  # candidates a round, after the first: the order of the others hardly changes
Agreement = Callable[[Collection[int]], float]


@dataclass(frozen=True)
class Dropping:
    """gone[n]: the layers that go when n of them go. agreements[n]: with the target, then."""

    gone: tuple[tuple[int, ...], ...]
    agreements: tuple[float, ...]


def angular_distance(streams: NDArray[np.float32], block: int = 1) -> NDArray[np.float64]:
    """[layers + 1 - block] mean of arccos(cosine) / pi of the stream before layer l and before l + block.

    streams: [layers + 1, tokens, width].
    """
    before, behind = streams[:-block].astype(np.float64), streams[block:].astype(np.float64)
    lengths = np.linalg.norm(before, axis=2) * np.linalg.norm(behind, axis=2)
    cosine = (before * behind).sum(axis=2) / np.maximum(lengths, 1e-30)
    distance: NDArray[np.float64] = np.arccos(np.clip(cosine, -1.0, 1.0)).mean(axis=1) / np.pi
    return distance


def block_influence(streams: NDArray[np.float32]) -> NDArray[np.float64]:
    """[layers] one less the mean cosine between the stream before and behind each layer."""
    before, behind = streams[:-1].astype(np.float64), streams[1:].astype(np.float64)
    lengths = np.linalg.norm(before, axis=2) * np.linalg.norm(behind, axis=2)
    influence: NDArray[np.float64] = 1.0 - ((before * behind).sum(axis=2) / np.maximum(lengths, 1e-30)).mean(
        axis=1
    )
    return influence


def by_block(streams: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """The `count` consecutive layers that change the stream least; the first layer always stays."""
    if count == 0:
        return ()
    distances = angular_distance(streams, count)
    start = 1 + int(np.argmin(distances[1:]))
    return tuple(range(start, start + count))


def by_angle(streams: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """The `count` single layers of least angular distance; the first layer always stays."""
    return _least(angular_distance(streams), count)


def by_influence(streams: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """The `count` layers of least block influence; the first layer always stays."""
    return _least(block_influence(streams), count)


def _least(worth: NDArray[np.float64], count: int) -> tuple[int, ...]:
    order = 1 + np.argsort(worth[1:], kind="stable")
    return tuple(int(layer) for layer in order[:count])


MEASURES = {"angle": by_angle, "block": by_block, "influence": by_influence}


def by_measure(
    streams: NDArray[np.float32],
    measure: str,
    agreement: Agreement,
    counts: Sequence[int],
    progress: Progress = silent,
    floor: float = 0.0,
) -> Dropping:
    """What one of MEASURES would drop, and how well the draft still agrees. Stops below `floor`."""
    gone: list[tuple[int, ...]] = []
    agreements: list[float] = []
    for count in counts:
        progress(f"{count} layers dropped", len(gone) / len(counts))
        gone.append(MEASURES[measure](streams, count))
        agreements.append(agreement(gone[-1]))
        if count and agreements[-1] < floor:
            break
    return Dropping(tuple(gone), tuple(agreements))


def by_agreement(
    agreement: Agreement, num_layers: int, count: int, progress: Progress = silent, floor: float = 0.0
) -> Dropping:
    """Greedily: in each round the layer goes without which the agreement is best.

    agreement: of the draft without these layers. Stops after `count` layers, or below `floor`.
    """
    order: list[int] = []
    agreements = [agreement(())]
    ranking: Sequence[int] = range(1, num_layers)  # the first layer stays
    for number in range(min(count, num_layers - 1)):
        candidates = ranking if number == 0 else ranking[:LOOKED_AT]
        scores: dict[int, float] = {}
        for i, layer in enumerate(candidates):
            progress(f"layer {number + 1} to drop", (number + i / len(candidates)) / count)
            scores[layer] = agreement((*order, layer))
        looked_at = sorted(scores, key=lambda layer: -scores[layer])
        order.append(looked_at[0])
        agreements.append(scores[looked_at[0]])
        # What was not looked at this time keeps its place, behind.
        ranking = [*looked_at[1:], *(layer for layer in ranking if layer not in scores)]
        if agreements[-1] < floor:
            break
    return Dropping(tuple(tuple(order[:n]) for n in range(len(order) + 1)), tuple(agreements))
