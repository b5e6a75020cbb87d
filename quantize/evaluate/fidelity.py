"""Fidelity of a compressed model: how close its logits are to its source's on the same text.

Knows no runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.calibration.target_text import Text, along
from specport.core.ports import Array, Model
from specport.progress import Progress

_ROWS = 16  # of logits at once: a float64 row of a large vocabulary takes a megabyte


@dataclass(frozen=True)
class Fidelity:
    """Fidelity of a model to its source, over all tokens of the answers.

    perplexity: of the answers' tokens.
    kl:         mean KL(source || model), nats a token; kl_error: standard error of the answers' means.
    same_top:   share of tokens where both have the same likeliest token.
    """

    perplexity: float
    kl: float
    kl_error: float
    same_top: float


def perplexity(model: Model, texts: Sequence[Text]) -> float:
    """Return the perplexity of the answers' tokens."""
    losses = [
        _loss(_log_softmax(rows), tokens)
        for output, answer in along(model, texts)
        for rows, tokens in _chunks(output.logits, answer)
    ]
    return float(np.exp(np.concatenate(losses).mean()))


def measure_fidelity(source: Model, model: Model, texts: Sequence[Text], progress: Progress) -> Fidelity:
    """Compare two models text by text.

    They must be separate: logits of a step are valid until the next step.
    """
    losses: list[NDArray[np.float64]] = []
    same: list[NDArray[np.bool_]] = []
    divergences: list[NDArray[np.float64]] = []  # one array per text
    readings = zip(along(source, texts), along(model, texts), strict=True)
    for number, ((expected, answer), (actual, _)) in enumerate(readings):
        progress("comparing with the source", number / len(texts))
        parts = []
        both = _chunks(expected.logits, answer), _chunks(actual.logits, answer)
        for (source_rows, tokens), (rows, _) in zip(*both, strict=True):
            p, q = _log_softmax(source_rows), _log_softmax(rows)
            losses.append(_loss(q, tokens))
            same.append(p.argmax(axis=1) == q.argmax(axis=1))
            parts.append((np.exp(p) * (p - q)).sum(axis=1))
        divergences.append(np.concatenate(parts))
    means = [each.mean() for each in divergences]
    return Fidelity(
        perplexity=float(np.exp(np.concatenate(losses).mean())),
        kl=float(np.concatenate(divergences).mean()),
        kl_error=float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0,
        same_top=float(np.concatenate(same).mean()),
    )


def _chunks(logits: Array, tokens: Sequence[int]) -> Iterator[tuple[Array, Sequence[int]]]:
    for start in range(0, len(tokens), _ROWS):
        yield logits[start : start + _ROWS], tokens[start : start + _ROWS]


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    x: NDArray[np.float64] = np.array(logits, dtype=np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def _loss(log_probs: NDArray[np.float64], tokens: Sequence[int]) -> NDArray[np.float64]:
    losses: NDArray[np.float64] = -log_probs[np.arange(len(tokens)), np.asarray(tokens)]
    return losses
