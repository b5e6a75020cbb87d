"""The sampler: one sequence's random stream, and the distribution by its sampling parameters.

Target and draft use the same `Sampler`: an acceptance rule is exact only when both distributions are formed
in the same way (Leviathan et al., arXiv 2211.17192). Arrays are array-API arrays. Random numbers are drawn on
the host, so that a seed gives the same numbers on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array
from numpy.typing import NDArray

from specport.core.arrays import Array, to_host
from specport.core.sampling.constraint import Constraint, allows, masked
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import LogitsProcessor, Prefix, RepetitionPenalty, as_float

# Width of the blocks of the two-level inverse CDF in `Sampler.draw`.
BLOCK = 512


class Sampler:
    """Hold one sequence's sampling parameters, logits processors and random stream. Not thread-safe.

    processors: applied in this order after those that the parameters imply.
    constraint: which tokens may follow; applied last. None = all.
    """

    def __init__(
        self,
        params: SamplingParams,
        processors: Sequence[LogitsProcessor] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.constraint = constraint
        every = (RepetitionPenalty(params.repetition_penalty), *processors)
        self._processors = [processor for processor in every if not processor.is_identity]
        self._rng = np.random.default_rng(params.seed)

    @property
    def processes(self) -> bool:
        """Return whether any logits processor or a constraint is active."""
        return bool(self._processors) or self.constraint is not None

    @property
    def plain_greedy(self) -> bool:
        """Return whether the chosen token is the argmax of the raw logits."""
        return self.params.greedy and not self.processes

    def state(self) -> Any:
        """Return the state of the random stream; None for greedy parameters, which draw nothing."""
        return None if self.params.greedy else self._rng.bit_generator.state

    def restore(self, state: Any) -> None:
        """Reset the random stream to a state from `state()`."""
        if state is not None:
            self._rng.bit_generator.state = state

    def uniform(self) -> float:
        """Return a random number in [0, 1)."""
        return float(self._rng.random())

    def accepts(self, probability: float) -> bool:
        """Return True with this probability: always at 1 and above, never at 0."""
        return self.uniform() < probability

    def process(self, logits: Array, prefix: Sequence[int]) -> Array:
        """Return the [vocab] logits after all processors and the constraint; greedy decoding needs this too.

        prefix: every token before this position, prompt included; not read without processors.
        """
        logits = self._processed(logits, prefix)
        return logits if self.constraint is None else masked(logits, self.constraint.mask(_prefix(prefix)))

    def likeliest(self, logits: Array, prefix: Sequence[int]) -> int:
        """Return the argmax of the processed [vocab] logits."""
        logits = self._processed(logits, prefix)
        best = int(array_namespace(logits).argmax(logits))
        if self.constraint is None:
            return best
        # Mostly the likeliest token is allowed: then it is the likeliest of the allowed ones, too.
        mask = self.constraint.mask(_prefix(prefix))
        if mask is None or allows(mask, best):
            return best
        return int(array_namespace(logits).argmax(masked(logits, mask)))

    def _processed(self, logits: Array, prefix: Sequence[int]) -> Array:
        for processor in self._processors:
            logits = processor(logits, prefix)
        return logits

    def distribution(self, logits: Array, prefix: Sequence[int]) -> Array:
        """Return the [vocab] probabilities of the next token.

        The order is that of transformers: processors, temperature, top-k, top-p, min-p. Greedy parameters
        give the limit, a one-hot distribution. float64 logits give float64, all others float32.
        """
        logits = as_float(self.process(logits, prefix))
        xp = array_namespace(logits)
        if self.params.greedy:
            ids = xp.arange(logits.shape[0], device=device(logits))
            return xp.astype(ids == xp.argmax(logits), logits.dtype)
        scores = (logits - xp.max(logits)) / self.params.temperature
        # Unnormalized: the largest weight is 1, so min-p is a plain comparison.
        weights = xp.exp(scores)
        if 0 < self.params.top_k < scores.shape[0]:
            weights = xp.where(scores >= _kth_largest(scores, self.params.top_k), weights, 0.0)
        if self.params.top_p < 1.0:
            weights = xp.where(weights >= _nucleus_edge(weights, self.params.top_p), weights, 0.0)
        if self.params.min_p > 0.0:
            weights = xp.where(weights >= self.params.min_p, weights, 0.0)
        return weights / xp.sum(weights)

    def choose(self, logits: Array, prefix: Sequence[int]) -> int:
        """Return the next token: the argmax of the processed [vocab] logits, or a sample."""
        if self.params.greedy:
            return self.likeliest(logits, prefix)
        return self.draw(self.distribution(logits, prefix))

    def draw(self, probs: Array) -> int:
        """Return a token sampled from [vocab] weights, normalized or not: inverse CDF with one uniform.

        Never returns a token of weight 0. Raises ValueError when the weights contain nan or sum to 0.
        """
        xp = array_namespace(probs)
        # Two levels, blocks and then the tokens of one block: a cumulative sum over the whole vocabulary
        # cannot be vectorized (0.8 ms for 150,000 tokens) and drifts in float32.
        full = probs.shape[0] // BLOCK * BLOCK
        blocks = xp.sum(xp.reshape(probs[:full], (-1, BLOCK)), axis=1)  # [vocab // BLOCK]
        blocks = xp.concat([blocks, xp.reshape(xp.sum(probs[full:]), (1,))])
        sums = np.cumsum(to_host(blocks), dtype=np.float64)
        total = float(sums[-1])
        if not 0.0 < total < math.inf:
            raise ValueError(f"cannot draw a token: the probabilities sum to {total}")
        target = self.uniform() * total
        block = _first_above(sums, target)
        target -= float(sums[block - 1]) if block else 0.0
        start, stop = block * BLOCK, min((block + 1) * BLOCK, probs.shape[0])
        inner = np.cumsum(to_host(probs[start:stop]), dtype=np.float64)
        return start + _first_above(inner, max(target, 0.0))


def _prefix(prefix: Sequence[int]) -> Prefix:
    return prefix if isinstance(prefix, Prefix) else Prefix(prefix)


def _first_above(sums: NDArray[np.float64], target: float) -> int:
    """Return the first index whose cumulative sum exceeds `target` >= 0, or the last that adds to the sum.

    In both cases the sum rises at this index, so its weight is not 0. The second case handles a target that
    rounding pushed to the total.
    """
    above = sums.searchsorted(target, side="right")
    return int(min(above, sums.searchsorted(sums[-1], side="left")))


def _kth_largest(scores: Array, k: int) -> Array:
    """Return the k-th largest of [n] scores, whose maximum is 0.

    On the host the few likely scores mostly suffice: 0.2 ms instead of 1.4 ms for 150,000 scores.
    """
    if is_numpy_array(scores):
        for cut in (-10.0, -20.0):
            likely = scores[np.flatnonzero(scores >= cut)]
            if len(likely) >= k:
                scores = likely
                break
        return np.partition(scores, len(scores) - k)[len(scores) - k]
    xp = array_namespace(scores)
    return xp.sort(scores)[scores.shape[0] - k]


def _nucleus_edge(weights: Array, top_p: float) -> Array:
    """Return [1] the smallest weight in the nucleus: the likeliest tokens that reach top_p of the sum.

    The token that crosses top_p belongs to the nucleus. transformers breaks ties at the edge by sort order;
    here tied tokens are kept, as in top-k.
    """
    xp = array_namespace(weights)
    need = top_p * xp.sum(weights)
    if is_numpy_array(weights):
        weights = _nucleus_candidates(weights, float(need))
    ordered = xp.sort(weights, descending=True)
    inside = xp.cumulative_sum(ordered)[:-1] < need
    return xp.take(ordered, xp.reshape(xp.count_nonzero(inside), (1,)))  # does not wait for the device


def _nucleus_candidates(weights: NDArray[Any], need: float) -> NDArray[Any]:
    """Return the weights above a cut whose sum still reaches `need`: they contain the nucleus.

    Sorting a vocabulary of 150,000 takes 6 ms; mostly a few dozen tokens suffice.
    """
    for cut in (1e-2, 1e-4, 1e-6):  # relative to the likeliest token, whose weight is 1
        candidates = weights[np.flatnonzero(weights >= cut)]
        if candidates.sum() >= need:
            return candidates
    return weights
