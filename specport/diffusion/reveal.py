"""Which masked positions of a block a denoising step reveals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specport.diffusion.options import Order


def chosen(
    masked: Sequence[int],
    confidence: NDArray[np.floating],
    remaining_steps: int,
    order: Order | None = None,
    threshold: float | None = None,
) -> list[int]:
    """Return the positions to reveal now, ascending.

    masked:     positions that are still masked, ascending; not empty.
    confidence: [block] probability of the likeliest token at each position. It must not depend on tokens that
                are drawn in this step: a draft's token would not have the law that it is judged by.
    remaining_steps: steps of the block, this one included.
    threshold:  as in `DiffusionOptions`.

    order:      None = by confidence.

    The schedule reveals ceil(masked / remaining steps) a step: `low_confidence_static` of SDAR. Of equal
    confidences the first position is taken.
    """
    count = -(-len(masked) // max(1, remaining_steps))
    if order == "position":
        ranked = list(masked)
    else:
        ranked = sorted(masked, key=lambda place: (-float(confidence[place]), place))
    if threshold is not None:
        sure = [float(confidence[place]) > threshold for place in ranked]
        count = max(count, sure.index(False) if False in sure else len(sure))
    return sorted(ranked[:count])
