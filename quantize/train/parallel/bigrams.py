"""Counts of pairs of tokens, by which a parallel draft's tokens are ranked again behind the token before.

A parallel draft chooses each token without knowing the one before it. Its logits become those of

    q(token) * (p(token | before) / p(token)) ** WEIGHT,
    p(token | before) = (n(before, token) + STRENGTH * p(token)) / (n(before) + STRENGTH)

with n counted in the training text. All tokens that were never seen behind `before` have the same factor, so
only pairs that were seen are kept, with WEIGHT * log(1 + n(before, token) / (STRENGTH * p(token))).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from specport.quantize.text.dialogues import Dialogue

from specport.models.kinds.bigrams import PAIR, Bigrams

# On held-out text of a draft for Qwen2.5-Coder-1.5B they make 2.70 tokens a round of 2.64. The best of 16
# pairs on one half of it brought 0.02 more on the other (tests/benchmarks/decoding/reranking.py).
STRENGTH, WEIGHT = 30.0, 0.75


def count(texts: Sequence[Dialogue], strength: float = STRENGTH, weight: float = WEIGHT) -> Bigrams:
    """Return the pairs of these texts, prompts included. strength, weight: see above."""
    tokens = np.concatenate([text.tokens for text in texts]).astype(np.int64)
    size = int(tokens.max()) + 1
    singles = np.bincount(tokens, minlength=size)
    chance = (singles + 1.0) / (len(tokens) + 1.0)
    inside = np.ones(len(tokens), dtype=np.bool_)
    inside[np.cumsum([len(text.tokens) for text in texts]) - 1] = False  # last tokens of texts
    (firsts,) = np.nonzero(inside)
    pairs, seen = np.unique(tokens[firsts] * size + tokens[firsts + 1], return_counts=True)
    found = np.empty(len(pairs), dtype=PAIR)
    found["before"], found["token"] = np.divmod(pairs, size)
    found["gain"] = weight * np.log1p(seen / (strength * chance[found["token"]]))
    return Bigrams(found)
