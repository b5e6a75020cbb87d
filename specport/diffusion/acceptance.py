"""Acceptance rules of SimSD: judge a drafted block by its mask slots, in the order of positions.

Both rules are those of token-level speculative decoding, with the logits of a slot in the place of the next
token's. What they preserve is the text, or the law, of the target under the verifying layout, never that of
native denoising, which reads every token anew in each step. Even that they do only where a slot attends to no
token that is discarded: see `discarded`.

The released code can also walk in the order of times. Its authors mark that as a bug, since it discards
accepted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specport.core.sampling.sampler import Sampler
from specport.diffusion.context import Logits
from specport.diffusion.denoise import Law


@dataclass(frozen=True)
class Verdict:
    """Hold what is committed of a drafted block.

    accepted: number of its first drafted tokens.
    token:    the target's own in the place of the first rejected one; None where all are accepted.
    """

    accepted: int
    token: int | None = None


def greedy_match(tokens: Sequence[int], logits: Logits) -> Verdict:
    """Accept tokens up to the first that is not the argmax of its slot; that argmax follows.

    tokens: [n] drafted ones. logits: [n, vocab] of their slots.
    """
    for place, (token, row) in enumerate(zip(tokens, logits, strict=True)):
        best = int(row.argmax())
        if token != best:
            return Verdict(place, best)
    return Verdict(len(tokens))


def mrs(tokens: Sequence[int], logits: Logits, drawn_from: Sequence[Law | None], sampler: Sampler) -> Verdict:
    """Accept each token with min(1, p / q); a rejected one is replaced by a draw from norm([p - q]+).

    drawn_from: [n] distributions q; None = a token that was not drawn, q is one-hot.
    """
    for place, (token, row, law) in enumerate(zip(tokens, logits, drawn_from, strict=True)):
        p: Law = sampler.distribution(row, ())
        q = _one_hot(p, token) if law is None else law
        if sampler.accepts(float(p[token]) / float(q[token])):
            continue
        excess = np.maximum(p - q, 0.0)
        # Only rounding can leave nothing: p equals q then.
        return Verdict(place, sampler.draw(excess if excess.sum() > 8 * np.finfo(p.dtype).eps else p))
    return Verdict(len(tokens))


def _one_hot(like: Law, token: int) -> Law:
    """Return the [vocab] distribution of a token that was not drawn."""
    law = np.zeros_like(like)
    law[token] = 1.0
    return law


def discarded(times: Sequence[int], known: int, kept: int, corrected: bool) -> int:
    """Return how many committed tokens were judged by a slot that attends to a token that is not kept.

    times: [n] of the block. known: its tokens without a slot. kept: its first tokens that are committed,
    known ones included; with `corrected` the last of them is not the drafted one.

    Such tokens depend on the draft. There are none where positions are revealed from left to right.
    """
    gone = [time for place, time in enumerate(times) if place >= kept - corrected]
    return sum(any(time < times[place] for time in gone) for place in range(known, kept))
