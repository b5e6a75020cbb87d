"""A small neural network that decides whether to draft further: the stop rule of DISCO (arXiv 2405.04304).

After each drafted token a two-layer network predicts from the largest draft probabilities, their entropy and
the token's position whether the target accepts the token. Drafting stops below a threshold. The network is
trained on a draft's proposals along texts of its target (`fit`). Numbers only, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.core.ports import Drafted

TOP_K = 10  # largest probabilities among the features; our reconstruction of the paper's
DEPTH = 10  # maximum depth of a draft under the classifier
NUM_FEATURES = TOP_K + 2
_HIDDEN, _ROUNDS, _RATE, _DECAY = 16, 400, 0.02, 1e-3
Floats = NDArray[np.float64]


def features(token: Drafted) -> list[float]:
    """Return the [NUM_FEATURES] features of a drafted token."""
    top = [*token.top[:TOP_K], *(0.0 for _ in range(TOP_K - len(token.top)))]
    return [*top, token.entropy, token.position / DEPTH]


@dataclass(frozen=True, eq=False)
class Classifier:
    """Hold the weights of the two layers, and the features' mean and scale.

    mean, scale: [features]; inner: [features, hidden]; inner_bias, outer: [hidden]; outer_bias: 0-dim.
    threshold:   least probability of acceptance at which drafting continues.
    """

    mean: Floats
    scale: Floats
    inner: Floats
    inner_bias: Floats
    outer: Floats
    outer_bias: Floats
    threshold: float = 0.5

    @property
    def top_k(self) -> int:
        return TOP_K

    def goes_on(self, token: Drafted) -> bool:
        return float(self.probabilities(np.asarray([features(token)]))[0]) >= self.threshold

    def probabilities(self, rows: Floats) -> Floats:
        """Return [n] the probability that each token is accepted. rows: [n, features]."""
        hidden = np.maximum(((rows - self.mean) / self.scale) @ self.inner + self.inner_bias, 0.0)
        probabilities: Floats = _sigmoid(hidden @ self.outer + self.outer_bias)
        return probabilities


def fit(rows: Sequence[Sequence[float]], accepted: Sequence[bool]) -> Classifier:
    """Train a classifier by cross-entropy on these tokens; deterministic.

    rows: [n][features]. Full-batch Adam with weight decay. Raises ValueError without rows.
    """
    x, y = np.asarray(rows, dtype=np.float64), np.asarray(accepted, dtype=np.float64)
    if not len(x):
        raise ValueError("nothing to learn from")
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = (x - mean) / scale
    rng = np.random.default_rng(0)
    # Start from the log odds of acceptance over all tokens.
    bias = np.log((y.sum() + 1.0) / (len(y) - y.sum() + 1.0))
    weights = [
        rng.normal(size=(x.shape[1], _HIDDEN)) * np.sqrt(2.0 / x.shape[1]),
        np.zeros(_HIDDEN),
        rng.normal(size=_HIDDEN) * 0.1,
        np.asarray(bias),
    ]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    for number in range(1, _ROUNDS + 1):
        before = z @ weights[0] + weights[1]
        hidden = np.maximum(before, 0.0)
        error = (_sigmoid(hidden @ weights[2] + weights[3]) - y) / len(y)  # [n] d loss / d logit
        back = np.outer(error, weights[2]) * (before > 0)  # [n, hidden]
        slopes = [z.T @ back, back.sum(axis=0), hidden.T @ error, error.sum()]
        for i, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
            first, second = moments[i]
            first += 0.1 * (slope - first)
            second += 0.001 * (slope**2 - second)
            step = (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
            weights[i] = weight - _RATE * (step + _DECAY * weight)
    inner, inner_bias, outer, outer_bias = (np.asarray(weight) for weight in weights)
    return Classifier(mean, scale, inner, inner_bias, outer, outer_bias)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0))))
