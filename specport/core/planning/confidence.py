"""How a draft distribution spreads its probability: what a stop rule may ask beyond a token's own."""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace

from specport.core.ports import Array


class Spread(NamedTuple):
    """The largest probabilities, likeliest first, and the entropy in nats; see `ports.Drafted`."""

    top: tuple[float, ...] = ()
    entropy: float = 0.0


NO_SPREAD = Spread()


def spread_of(weights: Array, top_k: int) -> Spread:
    """weights: [vocab], 0 or more, not necessarily with the sum 1. top_k = 0: nothing is worked out."""
    if not top_k:
        return NO_SPREAD
    xp = array_namespace(weights)
    total = float(xp.sum(weights))
    positive = xp.where(weights > 0, weights, xp.ones_like(weights))  # 0 log 0 = 0
    # H(w / n) = log n - sum(w log w) / n
    entropy = float(xp.log(xp.sum(weights)) - xp.sum(weights * xp.log(positive)) / total)
    left = xp.asarray(weights, copy=True)
    top: list[float] = []
    for _ in range(min(top_k, weights.shape[0])):  # cheaper than sorting a large vocabulary
        place = int(xp.argmax(left))
        top.append(float(left[place]) / total)
        left[place] = 0.0
    return Spread(tuple(top), max(0.0, entropy))
