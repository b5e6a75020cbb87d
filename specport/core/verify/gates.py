"""Gates of tiered verification: decide where a slim verifier is sure enough to stand in for the target.

Every gate here is lossy: tokens that it lets through follow the slim verifier, not the target. They are
parsed from what `--verify` takes:

    tiered:TA,TE   r = q'(v) / max q' of the drafted token v: accepted from TA on, replaced by the slim
                   verifier's own token from TE on, left to the target below (VIA-SD, arXiv 2606.12243)
    entropy:H      where the entropy of q' is H nats or more the target decides; elsewhere the slim verifier's
                   own token does

q' is the slim verifier's distribution by the sampling parameters; in greedy texts that of temperature 1. The
paper's thresholds are reported in a form in which the middle tier is empty; this is the form in which it is
not (see docs/verification.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from array_api_compat import array_namespace

from specport.core.arrays import Array
from specport.core.sampling.processors import Prefix, as_float
from specport.core.sampling.sampler import Sampler
from specport.errors import InvalidInput

LOSSLESS = "lossless"
FORMS = "lossless, tiered:TA,TE, entropy:H"
OWN, TARGET = -1, -2  # verdicts of a gate beside the index of an accepted token


class Gate(Protocol):
    """Decide at one position. name: how `--verify` writes it."""

    @property
    def name(self) -> str: ...

    def decide(self, law: Law, tokens: Sequence[int]) -> int:
        """Return the index of the drafted token to accept, OWN for the slim verifier's own, or TARGET.

        tokens: drafted for this position, siblings of a tree.
        """
        ...


class Law:
    """Compute what a gate needs of q' at one position, each on demand.

    logits: [vocab] the slim verifier's. prefix: all tokens before the position.
    """

    def __init__(self, logits: Array, sampler: Sampler, prefix: Prefix) -> None:
        self._greedy = sampler.params.greedy
        if self._greedy:
            scores = as_float(sampler.process(logits, prefix))
            self._scores = scores - array_namespace(scores).max(scores)
        else:
            probs = sampler.distribution(logits, prefix)
            self._scores = probs / array_namespace(probs).max(probs)

    def ratio(self, token: int) -> float:
        """Return q'(token) / max q', 0 for a token beyond the vocabulary."""
        if token >= self._scores.shape[0]:
            return 0.0
        score = float(self._scores[token])
        return math.exp(score) if self._greedy else score

    def entropy(self) -> float:
        """Return the entropy of q' in nats."""
        xp = array_namespace(self._scores)
        weights = xp.exp(self._scores) if self._greedy else self._scores
        p = weights / xp.sum(weights)
        return float(-xp.sum(xp.where(p > 0, p * xp.log(xp.where(p > 0, p, 1.0)), 0.0)))


@dataclass(frozen=True)
class RatioGate:
    """Gate by the drafted token's ratio to the likeliest one. accept, escalate: the two thresholds."""

    accept: float
    escalate: float

    @property
    def name(self) -> str:
        return f"tiered:{self.accept:g},{self.escalate:g}"

    def decide(self, law: Law, tokens: Sequence[int]) -> int:
        ratios = [law.ratio(token) for token in tokens]
        best = max(range(len(ratios)), key=ratios.__getitem__)
        if ratios[best] >= self.accept:
            return best
        return OWN if ratios[best] >= self.escalate else TARGET


@dataclass(frozen=True)
class EntropyGate:
    """Gate by the slim verifier's entropy. most: nats, from which on the target decides."""

    most: float

    @property
    def name(self) -> str:
        return f"entropy:{self.most:g}"

    def decide(self, law: Law, tokens: Sequence[int]) -> int:
        return TARGET if law.entropy() >= self.most else OWN


def parse(text: str, *, lossy: bool) -> Gate | None:
    """Return the gate that a text names; None = lossless.

    lossy: whether the user has agreed to a text that may differ from the target's.
    Raises InvalidInput for other texts, and for a gate without that agreement.
    """
    if text == LOSSLESS:
        return None
    kind, _, rest = text.partition(":")
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        numbers = []
    good = all(math.isfinite(number) and number >= 0 for number in numbers)
    gate: Gate
    if kind == "tiered" and len(numbers) == 2 and good:
        if numbers[0] <= numbers[1]:
            raise InvalidInput(
                f"verify is {text!r}: the first threshold must be the larger one",
                "tokens are accepted from the first on, and the target's below the second: tiered:0.6,0.3",
            )
        gate = RatioGate(*numbers)
    elif kind == "entropy" and len(numbers) == 1 and good:
        gate = EntropyGate(*numbers)
    else:
        raise InvalidInput(f"unknown verification {text!r}", f"choose one of {FORMS}, as in tiered:0.6,0.3")
    if not lossy:
        raise InvalidInput(
            f"verify {text} may change the text: it is not the target that accepts each token",
            "add --lossy (lossy=True in Python), or leave out --verify",
        )
    return gate


def check_logprobs(logprobs: int | None) -> None:
    """Raise InvalidInput where log-probabilities are asked for."""
    if logprobs is not None:
        raise InvalidInput(
            "log-probabilities are the target's, which tiered verification does not compute for each token",
            "leave out --logprobs, or --verify",
        )
