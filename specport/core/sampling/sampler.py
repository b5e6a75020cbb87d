"""Sampling parameters, the distribution they make of logits, and one sequence's random stream.

Target and draft go through the same `Sampler`: an acceptance rule is exact only when both
distributions are formed alike (Leviathan et al., arXiv 2211.17192). Arrays are array-API arrays;
random numbers are drawn on the host, so that a seed means the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array, to_device
from numpy.typing import NDArray

from specport.errors import InvalidInput

Array = Any  # an array-API array; the standard defines no common static type

# Below this a temperature is greedy: dividing by it would only overflow (vLLM draws the line here too).
GREEDY_BELOW = 1e-5
# Width of the blocks of the two-level inverse CDF in `Sampler.draw`.
BLOCK = 512


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen; names and meaning as in transformers' GenerationConfig.

    temperature: 0 = greedy.          top_k: 0 = off; tokens tied with the k-th are kept.
    top_p: 1 = off, in (0, 1].        min_p: 0 = off, in [0, 1].
    repetition_penalty: 1 = off, > 0. seed: None = a fresh one.

    Raises InvalidInput when a value is outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        def require(good: bool, name: str, range_: str) -> None:
            if not good:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be {range_}")

        # Comparisons with nan are False, so nan is refused too.
        require(0 <= self.temperature < math.inf, "temperature", "0 or more")
        require(isinstance(self.top_k, int) and self.top_k >= 0, "top_k", "a whole number, 0 or more")
        require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "above 0")
        require(
            self.seed is None or (isinstance(self.seed, int) and self.seed >= 0),
            "seed",
            "a whole number, 0 or more",
        )

    @property
    def greedy(self) -> bool:
        """Always the likeliest token."""
        return self.temperature < GREEDY_BELOW

    @property
    def plain_greedy(self) -> bool:
        """Greedy and nothing to process: the argmax of the raw logits is the choice."""
        return self.greedy and self.repetition_penalty == 1.0


@dataclass(frozen=True)
class Prefix(Sequence[int]):
    """`base` followed by `path`, without copying `base`.

    base is append-only for as long as a sampler sees it: what was counted once is not read again.
    """

    base: Sequence[int]
    path: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.base) + len(self.path)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [*self.base, *self.path][index]
        n = len(self.base)
        if index < 0:
            index += len(self)
        if index < 0:
            raise IndexError("prefix index out of range")
        return self.base[index] if index < n else self.path[index - n]


@dataclass
class SeenTokens:
    """Which tokens occur in a prefix. Reads each token of an append-only base only once."""

    _base: Sequence[int] = ()
    _counted: int = 0
    _mask: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def mask(self, prefix: Sequence[int], vocab: int) -> NDArray[np.bool_]:
        """[vocab] True at every token of `prefix`. The caller must not write to it."""
        base, path = (prefix.base, prefix.path) if isinstance(prefix, Prefix) else (prefix, ())
        if base is not self._base or len(base) < self._counted or vocab > len(self._mask):
            # Draft and target may differ in vocabulary size: keep the wider, serve both.
            self._base, self._counted = base, 0
            self._mask = np.zeros(max(vocab, len(self._mask)), dtype=np.bool_)
        _mark(self._mask, base[self._counted :])
        self._counted = len(base)
        mask = self._mask[:vocab]
        if path:
            mask = mask.copy()
            _mark(mask, path)
        return mask


def _mark(mask: NDArray[np.bool_], tokens: Sequence[int]) -> None:
    # A token beyond this model's vocabulary has no logit that could be penalised.
    ids = np.asarray(tokens, dtype=np.int64)
    mask[ids[ids < len(mask)]] = True


class Sampler:
    """Sampling parameters and one sequence's random stream. Not to be shared between threads."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._rng = np.random.default_rng(params.seed)
        self._seen = SeenTokens()

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return float(self._rng.random())

    def accepts(self, probability: float) -> bool:
        """True with this probability; certain at 1 and above, impossible at 0."""
        return self.uniform() < probability

    def process(self, logits: Array, prefix: Sequence[int]) -> Array:
        """[vocab] logits after the repetition penalty, the one step that greedy decoding shares.

        prefix: every token before this position, prompt included; untouched without a penalty.
        """
        penalty = self.params.repetition_penalty
        if penalty == 1.0:
            return logits
        xp = array_namespace(logits)
        logits = _as_float(logits)
        seen = self._seen.mask(prefix, logits.shape[0])
        if is_numpy_array(logits):
            # Touching only what was seen is 10 times as fast as three passes over the vocabulary.
            ids = np.flatnonzero(seen)
            out, values = logits.copy(), logits[ids]
            out[ids] = np.where(values < 0, values * penalty, values / penalty)
            return out
        mask = xp.asarray(seen, device=device(logits))
        return xp.where(mask, xp.where(logits < 0, logits * penalty, logits / penalty), logits)

    def distribution(self, logits: Array, prefix: Sequence[int]) -> Array:
        """[vocab] probabilities of the next token, in transformers' order of processors.

        Repetition penalty, temperature, top-k, top-p, min-p. Greedy parameters give the limit, a
        one-hot distribution. float64 logits give float64, all others float32.
        """
        logits = _as_float(self.process(logits, prefix))
        xp = array_namespace(logits)
        if self.params.greedy:
            ids = xp.arange(logits.shape[0], device=device(logits))
            return xp.astype(ids == xp.argmax(logits), logits.dtype)
        scores = (logits - xp.max(logits)) / self.params.temperature
        # Unnormalised from here on: the largest weight is 1, so min-p is a plain comparison.
        weights = xp.exp(scores)
        if 0 < self.params.top_k < scores.shape[0]:
            weights = xp.where(scores >= _kth_largest(scores, self.params.top_k), weights, 0.0)
        if self.params.top_p < 1.0:
            weights = xp.where(weights >= _nucleus_edge(weights, self.params.top_p), weights, 0.0)
        if self.params.min_p > 0.0:
            weights = xp.where(weights >= self.params.min_p, weights, 0.0)
        return weights / xp.sum(weights)

    def choose(self, logits: Array, prefix: Sequence[int]) -> int:
        """The next token: the argmax of the processed [vocab] logits, or a draw."""
        if self.params.greedy:
            processed = self.process(logits, prefix)
            return int(array_namespace(processed).argmax(processed))
        return self.draw(self.distribution(logits, prefix))

    def draw(self, probs: Array) -> int:
        """A token drawn from [vocab] weights, normalised or not: inverse CDF with one uniform.

        Never returns a token of weight 0. Raises ValueError when the weights hold nan or sum to 0.
        """
        xp = array_namespace(probs)
        # Two levels, blocks and then the tokens of one block: a running sum over the whole vocabulary
        # cannot be vectorised (0.8 ms for 150,000 tokens) and in float32 it drifts.
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


def to_host(array: Array) -> NDArray[Any]:
    """The array as numpy's; waits for its device."""
    if is_numpy_array(array):
        return np.asarray(array)
    return np.from_dlpack(to_device(array, "cpu") if is_torch_array(array) else array)


def _first_above(sums: NDArray[np.float64], target: float) -> int:
    """First index whose running sum exceeds `target` >= 0, or the last index that adds to the sum.

    Either way the sum rises at this index, so its weight is not 0; the second case catches a target
    that rounding pushed to the total.
    """
    above = sums.searchsorted(target, side="right")
    return int(min(above, sums.searchsorted(sums[-1], side="left")))


def _as_float(logits: Array) -> Array:
    """The logits in float32, or as they are in float64: half precision cannot hold a distribution."""
    xp = array_namespace(logits)
    return logits if logits.dtype in (xp.float32, xp.float64) else xp.astype(logits, xp.float32)


def _kth_largest(scores: Array, k: int) -> Array:
    """The k-th largest of [n] scores, whose maximum is 0.

    On the host the few likely scores mostly suffice: 0.2 ms where all 150,000 would take 1.4.
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
    """Smallest weight inside the nucleus: the likeliest tokens that together reach top_p of the sum.

    The token that crosses top_p belongs to it. transformers breaks ties at the edge by sort order;
    here tied tokens are kept, as top-k does.
    """
    xp = array_namespace(weights)
    need = top_p * xp.sum(weights)
    if is_numpy_array(weights):
        weights = _nucleus_candidates(weights, float(need))
    ordered = xp.sort(weights, descending=True)
    inside = xp.cumulative_sum(ordered)[:-1] < need
    return xp.take(ordered, xp.reshape(xp.count_nonzero(inside), (1,)))  # [1], without waiting for a device


def _nucleus_candidates(weights: NDArray[Any], need: float) -> NDArray[Any]:
    """The weights above a cut whose sum still reaches `need`: the nucleus lies among them.

    Sorting a vocabulary of 150,000 takes 6 ms; mostly a few dozen tokens are likely enough to matter.
    """
    for cut in (1e-2, 1e-4, 1e-6):  # relative to the likeliest token, whose weight is 1
        candidates = weights[np.flatnonzero(weights >= cut)]
        if candidates.sum() >= need:
            return candidates
    return weights
