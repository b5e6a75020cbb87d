"""Denoise one block: masks become tokens, the surest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specport.core.sampling.sampler import Sampler
from specport.diffusion import reveal
from specport.diffusion.context import Context, Logits
from specport.diffusion.layout import denoising
from specport.diffusion.options import DiffusionOptions

Law = NDArray[np.floating]  # [vocab] probabilities


@dataclass
class Denoised:
    """Hold a block.

    tokens: [n] of the block, known ones first.
    times:  [n] step, counted from 0, at which each token was revealed; -1 = it was known.
    laws:   [n] the distribution that each token was drawn from, in the step that revealed it; None where it
            was known or is the likeliest one (temperature 0).
    """

    tokens: list[int]
    times: list[int]
    laws: list[Law | None] = field(default_factory=list)


def denoise(
    context: Context, length: int, options: DiffusionOptions, sampler: Sampler, known: Sequence[int] = ()
) -> Denoised:
    """Return the block of `length` tokens behind the text of `context`, in its native denoising.

    known: first tokens of the block. Each step reads the block as it is then. A position is chosen by the
    probability of its likeliest token, then its token is chosen or drawn.
    """
    mask_id = context.facts.mask_id
    tokens = [*known, *[mask_id] * (length - len(known))]
    block = Denoised(tokens, [-1] * length, [None] * length)
    masked = [*range(len(known), length)]
    steps = min(options.steps or length, length)
    for step in range(length):  # the schedule's steps reveal them all; a threshold may do so earlier
        if not masked:
            break
        logits = without_mask(context.step(denoising(tokens)), masked, mask_id)
        confidence = np.zeros(length)
        if len(masked) > 1 and (options.order != "position" or options.threshold is not None):
            confidence[masked] = likeliest(logits)
        row = {place: i for i, place in enumerate(masked)}
        for place in reveal.chosen(masked, confidence, steps - step, options.order, options.threshold):
            tokens[place], block.laws[place] = pick(logits[row[place]], sampler)
            block.times[place] = step
            masked.remove(place)
    return block


def pick(logits: Law, sampler: Sampler) -> tuple[int, Law | None]:
    """Return a token, and the distribution that it was drawn from; None at temperature 0."""
    if sampler.params.greedy:
        return int(logits.argmax()), None
    law: Law = sampler.distribution(logits, ())
    return sampler.draw(law), law


def likeliest(logits: Logits) -> Law:
    """Return [rows] the probability of each row's likeliest token, at temperature 1."""
    best = logits.max(axis=1, keepdims=True)
    return np.asarray(1.0 / np.exp(logits - best).sum(axis=1))


def without_mask(logits: Logits, rows: Sequence[int], mask_id: int) -> Logits:
    """Return a copy of these rows of [any, vocab] logits, in which no row can choose the mask."""
    out = logits[rows]
    out[:, mask_id] = -np.inf
    return out
