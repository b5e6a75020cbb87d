"""The cost of a layer mask: how far the slim verifier's law violates the target's margins (VIA-SD, Eq. 11).

    R(q, p) = sum_v p(v) max(0, log(1 - alpha) + log p(v) - log q(v))
            + sum_v q(v) max(0, log beta + log p(v) - log q(v))

q is the target's law, p the slim verifier's: only what it overrates by more than the margins counts.
(arXiv 2606.12243)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from specport.quantize.prune.probe import Probe

from specport.calibration.target_text import Text

ALPHA, BETA = 0.5, 0.3  # the paper's
_LEAST = -60.0  # natural logarithm of the least probability that is told apart from 0


def log_law(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [tokens, vocab] log-probabilities of logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.maximum(found, np.float32(_LEAST))


def margin_violation(
    log_q: NDArray[np.float32], log_p: NDArray[np.float32], alpha: float = ALPHA, beta: float = BETA
) -> NDArray[np.float64]:
    """Return [tokens] the cost R at each token, of [tokens, vocab] log-probabilities."""
    gap = log_p - log_q
    own = np.exp(log_p) * np.maximum(gap + np.float32(math.log1p(-alpha)), 0)
    target = np.exp(log_q) * np.maximum(gap + np.float32(math.log(beta)), 0)
    found: NDArray[np.float64] = (own + target).sum(axis=1, dtype=np.float64)
    return found


class MaskCost:
    """Compute the cost of masks on texts of the target.

    probe: the target, with switchable layers.
    """

    def __init__(self, probe: Probe, texts: Sequence[Text]) -> None:
        self._probe, self._texts = probe, [text for text in texts if text.answer]
        # Half precision: the laws of a few hundred tokens of a large vocabulary take a few hundred megabytes.
        self._laws = [log_law(probe.logits(text)).astype(np.float16) for text in self._texts]
        self.num_tokens = sum(len(text.answer) for text in self._texts)

    def __call__(self, skipped: Collection[int]) -> tuple[float, float]:
        """Return the mean cost a token without these layers, and the share of equal likeliest tokens."""
        cost, equal = 0.0, 0
        for text, law in zip(self._texts, self._laws, strict=True):
            log_p, log_q = log_law(self._probe.logits(text, skipped)), law.astype(np.float32)
            cost += float(margin_violation(log_q, log_p).sum())
            equal += int((log_p.argmax(axis=1) == log_q.argmax(axis=1)).sum())
        return cost / self.num_tokens, equal / self.num_tokens
