"""Reference implementation of speculative decoding: slow and simple, the oracle of the tests.

Plain numpy over callables `model(prefix) -> probabilities [vocab]`; no trees, caches or batches.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Tokens = tuple[int, ...]
Probs = NDArray[np.float64]
LanguageModel = Callable[[Tokens], Probs]


def plain(target: LanguageModel, prompt: Tokens, length: int, rng: np.random.Generator) -> Tokens:
    """Return `length` tokens sampled one by one."""
    out = prompt
    for _ in range(length):
        p = target(out)
        out += (int(rng.choice(len(p), p=p)),)
    return out[len(prompt) :]


def plain_law(target: LanguageModel, prompt: Tokens, length: int) -> dict[Tokens, float]:
    """Return the exact distribution of `plain`: text -> probability, for every text of `length` tokens."""
    law: dict[Tokens, float] = {(): 1.0}
    for _ in range(length):
        law = {
            (*text, token): probability * float(p)
            for text, probability in law.items()
            for token, p in enumerate(target(prompt + text))
            if p > 0
        }
    return law


def speculative(
    target: LanguageModel,
    draft: LanguageModel,
    prompt: Tokens,
    length: int,
    num_draft_tokens: int,
    rng: np.random.Generator,
) -> Tokens:
    """Return `length` tokens sampled by Leviathan et al., arXiv 2211.17192, algorithm 1."""
    out = prompt
    while len(out) - len(prompt) < length:
        start, drafted = out, out
        for _ in range(num_draft_tokens):
            q = draft(drafted)
            drafted += (int(rng.choice(len(q), p=q)),)
        for x in drafted[len(start) :]:
            p, q = target(out), draft(out)
            if rng.random() < p[x] / q[x]:
                out += (x,)
                continue
            residual = np.maximum(p - q, 0.0)
            out += (int(rng.choice(len(p), p=residual / residual.sum())),)
            break
        else:  # every draft token was accepted: the target's next token is free
            p = target(out)
            out += (int(rng.choice(len(p), p=p)),)
    return out[len(prompt) : len(prompt) + length]
