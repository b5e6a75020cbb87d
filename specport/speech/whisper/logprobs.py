"""Sums of log-probabilities: how sure the model was of a window's text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specport.core.arrays import Array, to_host
from specport.core.sampling.processors import Prefix
from specport.core.sequence import Generation
from specport.core.verify.rules import Verdict
from specport.core.verify.verifier import VerifyRequest


@dataclass
class _Sum:
    left: int
    ends: frozenset[int]
    total: float = 0.0


class LogprobSums:
    """Add up the log-probabilities of committed tokens, the end token too, as the verifier finds them.

    They are those after all processors and at temperature 1, as OpenAI's decoder counts them.
    """

    def __init__(self) -> None:
        self._sums: dict[int, _Sum] = {}

    def add(self, generation: Generation) -> None:
        """Count for a sequence from now on."""
        self._sums[generation.key] = _Sum(generation.max_new_tokens, generation.eos_ids)

    def pop(self, generation: Generation) -> float:
        """Return the sum of a sequence and forget it."""
        return self._sums.pop(generation.key).total

    def clear(self) -> None:
        """Forget all sequences."""
        self._sums.clear()

    def watch(self, request: VerifyRequest, verdict: Verdict, logits: Array) -> None:
        """Add what a round commits (`TargetVerifier`). logits: [n + 1, vocab] of the root and the tree."""
        found = self._sums.get(request.key)
        if found is None:
            return
        path = verdict.path
        rows = (0, *(node + 1 for node in path))
        tokens = (*(request.tree.tokens[node] for node in path), verdict.token)
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if found.left <= 0:
                return
            scores = request.sampler.process(logits[row, :], Prefix(request.context, tokens[:i]))
            found.total += _logprob(scores, token)
            found.left = 0 if token in found.ends else found.left - 1


def _logprob(scores: Array, token: int) -> float:
    # Only the sum needs float64: exp of 50,000 float64 numbers takes 0.8 ms, a good part of a draft's step.
    row = to_host(scores)
    top = row.max()
    return float(row[token]) - float(top) - math.log(np.exp(row - top).sum(dtype=np.float64))
