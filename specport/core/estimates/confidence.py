"""Summarize a draft distribution for stop rules: its largest probabilities and its entropy."""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace, device

from specport.core.arrays import Array, to_host
from specport.core.sampling.topk import largest


class Spread(NamedTuple):
    """Hold the largest probabilities, likeliest first, and the entropy in nats; see `ports.Drafted`."""

    top: tuple[float, ...] = ()
    entropy: float = 0.0


NO_SPREAD = Spread()


def spread_of(weights: Array, top_k: int) -> Spread:
    """Return the summary of the distribution that is proportional to these weights.

    weights: [vocab], non-negative, not necessarily normalized.
    top_k:   number of largest probabilities; 0 = nothing is computed.
    """
    if not top_k:
        return NO_SPREAD
    xp = array_namespace(weights)
    total = float(xp.sum(weights))
    positive = xp.where(weights > 0, weights, xp.ones_like(weights))  # 0 log 0 = 0
    # H(w / n) = log n - sum(w log w) / n
    entropy = float(xp.log(xp.sum(weights)) - xp.sum(weights * xp.log(positive)) / total)
    columns = largest(xp.expand_dims(weights, axis=0), top_k)[0]
    top = to_host(xp.take(weights, xp.asarray(columns, device=device(weights)))).tolist()
    return Spread(tuple(weight / total for weight in top), max(0.0, entropy))
