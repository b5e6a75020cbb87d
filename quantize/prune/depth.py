"""Ranking of decoder layers by how little a draft loses without them.

Three measures: the angular distance between the residual stream before and after a layer or a block of layers
(Gromov et al., arXiv 2403.17887), block influence (Men et al., arXiv 2403.03853), and agreement: how often
the draft still proposes what the target writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.progress import Progress, silent

CANDIDATES = 6  # layers that each round tries, after the first: the order of the others hardly changes
Agreement = Callable[[Collection[int]], float]


@dataclass(frozen=True)
class Dropping:
    """Layers in the order of dropping.

    dropped_by_count[n]: the layers to drop where n are dropped. agreements[n]: with the target, without them.
    """

    dropped_by_count: tuple[tuple[int, ...], ...]
    agreements: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.dropped_by_count) == len(self.agreements) > 0:
            raise ValueError("there is not one agreement for each number of layers")

    def reaches(self, num_layers: int, count: int) -> bool:
        """Return whether it says which `count` of a model's layers to drop."""
        layers = {layer for dropped in self.dropped_by_count for layer in dropped}
        return count < len(self.agreements) and layers <= {*range(num_layers)}


def angular_distance(streams: NDArray[np.float32], block: int = 1) -> NDArray[np.float64]:
    """Return [layers + 1 - block]: mean arccos(cosine) / pi between the streams before l and l + block.

    streams: [layers + 1, tokens, width].
    """
    before, behind = streams[:-block].astype(np.float64), streams[block:].astype(np.float64)
    lengths = np.linalg.norm(before, axis=2) * np.linalg.norm(behind, axis=2)
    cosine = (before * behind).sum(axis=2) / np.maximum(lengths, 1e-30)
    distance: NDArray[np.float64] = np.arccos(np.clip(cosine, -1.0, 1.0)).mean(axis=1) / np.pi
    return distance


def block_influence(streams: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [layers]: one minus the mean cosine of the stream before and after each layer."""
    before, behind = streams[:-1].astype(np.float64), streams[1:].astype(np.float64)
    lengths = np.linalg.norm(before, axis=2) * np.linalg.norm(behind, axis=2)
    influence: NDArray[np.float64] = 1.0 - ((before * behind).sum(axis=2) / np.maximum(lengths, 1e-30)).mean(
        axis=1
    )
    return influence


def by_block(streams: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """Return the `count` consecutive layers that change the stream least; the first layer always stays."""
    if count == 0:
        return ()
    distances = angular_distance(streams, count)
    start = 1 + int(np.argmin(distances[1:]))
    return tuple(range(start, start + count))


def by_angle(streams: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """Return the `count` single layers of least angular distance; the first layer always stays."""
    return _least(angular_distance(streams), count)


def by_influence(streams: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """Return the `count` layers of least block influence; the first layer always stays."""
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
    """Rank layers by one of MEASURES and measure the agreement.

    Stops at the first agreement below `floor`.
    """
    dropped: list[tuple[int, ...]] = []
    agreements: list[float] = []
    for count in counts:
        progress(f"{count} layers dropped", len(dropped) / len(counts))
        dropped.append(MEASURES[measure](streams, count))
        agreements.append(agreement(dropped[-1]))
        if count and agreements[-1] < floor:
            break
    return Dropping(tuple(dropped), tuple(agreements))


def by_agreement(
    agreement: Agreement, num_layers: int, count: int, progress: Progress = silent, floor: float = 0.0
) -> Dropping:
    """Rank layers greedily: each round drops the layer without which the agreement is best.

    agreement: returns the draft's agreement without the given layers.
    Stops after `count` layers, or at the first agreement below `floor`.
    """
    order: list[int] = []
    agreements = [agreement(())]
    ranking: Sequence[int] = range(1, num_layers)  # the first layer stays
    for number in range(min(count, num_layers - 1)):
        candidates = ranking if number == 0 else ranking[:CANDIDATES]
        scores: dict[int, float] = {}
        for i, layer in enumerate(candidates):
            progress(f"layer {number + 1} to drop", (number + i / len(candidates)) / count)
            scores[layer] = agreement((*order, layer))
        ordered = sorted(scores, key=lambda layer: -scores[layer])
        order.append(ordered[0])
        agreements.append(scores[ordered[0]])
        # Layers that were not tried in this round keep their order, behind the others.
        ranking = [*ordered[1:], *(layer for layer in ranking if layer not in scores)]
        if agreements[-1] < floor:
            break
    return Dropping(tuple(tuple(order[:n]) for n in range(len(order) + 1)), tuple(agreements))
