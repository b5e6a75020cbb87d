"""How far the logits that judge a drafted block are from those of native denoising.

No layout gives the same: in a verifying step the states of a revealed token are those of the time at which it
was revealed, while native denoising computes every token of the block anew in each pass. The gap is measured
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specport.diffusion.context import Context, Logits
from specport.diffusion.denoise import without_mask
from specport.diffusion.layout import denoising, verifying
from specport.diffusion.options import LayoutKind


@dataclass(frozen=True)
class Gap:
    """Compare two sets of [tokens, vocab] logits.

    variation: total variation distance of each token's distributions, at temperature 1.
    same:      whether the likeliest token is the same.
    """

    variation: tuple[float, ...]
    same: tuple[bool, ...]


def native(context: Context, tokens: Sequence[int], times: Sequence[int], known: int = 0) -> Logits:
    """Return [n - known, vocab] logits of each token of a block in the denoising step that reveals it.

    tokens, times: [n] of the block, which is behind the text of `context`, as for `layout.verifying`.
    """
    mask_id = context.facts.mask_id
    found: dict[int, Logits] = {}
    for time in sorted(set(times[known:])):
        shown = [t if i < known or times[i] < time else mask_id for i, t in enumerate(tokens)]
        revealed = [i for i in range(known, len(tokens)) if times[i] == time]
        logits = without_mask(context.step(denoising(shown)), revealed, mask_id)
        found |= dict(zip(revealed, logits, strict=True))
    return np.stack([found[i] for i in range(known, len(tokens))])


def gap(
    context: Context,
    kind: LayoutKind,
    tokens: Sequence[int],
    times: Sequence[int],
    passes: Logits,
    known: int = 0,
) -> Gap:
    """Return how the slots of a block differ from its native passes. passes: what `native` returns."""
    mask_id = context.facts.mask_id
    layout = verifying(kind, tokens, times, mask_id, known)
    rows = [layout.slots[place] for place in range(known, len(tokens))]
    slots = without_mask(context.step(layout.block), rows, mask_id)
    p, q = _softmax(slots), _softmax(passes)
    variation = 0.5 * np.abs(p - q).sum(axis=1)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    return Gap(tuple(map(float, variation)), tuple(map(bool, same)))


def _softmax(logits: Logits) -> Logits:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
