"""Sampling with SimSD: the law of its texts, by enumeration of a round and by chi-square over rounds.

By position and with a layout without leak it is the target's law under that layout: each token is drawn given
those before it. The same test shows that the published order has another.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from support.laws.acceptance_law import branches
from support.tiny.tiny_diffusion import tiny_diffusion

from specport.core.ports import Row
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.diffusion.decoding import SimSD
from specport.diffusion.layout import denoising, verifying
from specport.diffusion.options import DiffusionOptions, LayoutKind, Order

MASK = 3  # of the tokens 0, 1, 2
BLOCK = 2
PROMPT = [1, 2]
SAMPLED = SamplingParams(temperature=1.0)
TARGET = tiny_diffusion(5, vocab=4, width=8, block_length=BLOCK, sharpness=0.8)
DRAFT = tiny_diffusion(5, vocab=4, width=8, block_length=BLOCK, sharpness=0.8, noise=0.6)


@cache
def conditional(layout: LayoutKind, text: tuple[int, ...]) -> tuple[float, ...]:
    """Return the target's probabilities of the token behind prompt and text, from rows laid out here."""
    whole = [*PROMPT, *text]
    start = len(whole) // BLOCK * BLOCK
    block = [*whole[start:], *[MASK] * (BLOCK - len(whole) + start)]
    handle = TARGET.model.open()
    for at in range(0, start, BLOCK):
        rows = denoising(whole[at : at + BLOCK])
        TARGET.model.step([Row(handle, rows, logits="none")])
        TARGET.model.commit(handle, range(BLOCK))
    found = verifying(layout, block, range(BLOCK), MASK, len(whole) - start)
    logits = np.asarray(TARGET.model.step([Row(handle, found.block)]).logits)[found.slots[len(whole) - start]]
    TARGET.model.close(handle)
    weights = np.exp(logits[:MASK] - logits[:MASK].max())
    return tuple(weights / weights.sum())


def exact(layout: LayoutKind, length: int) -> NDArray[np.float64]:
    law = np.zeros((MASK,) * length)
    for text in np.ndindex(law.shape):
        law[text] = np.prod([conditional(layout, text[:i])[text[i]] for i in range(length)])
    return law


def of_a_round(layout: LayoutKind, order: Order) -> NDArray[np.float64]:
    """Return the law of a block: a round, and what is left of it drawn by the target."""
    options = DiffusionOptions(order=order, layout=layout)

    def run(sampler: Sampler) -> tuple[int, ...]:
        decoder = SimSD(TARGET, DRAFT, PROMPT, sampler, options)
        tokens = decoder.round(100).tokens
        decoder.close()
        return tokens

    law = np.zeros((MASK,) * BLOCK)
    for tokens, weight in branches(run, SAMPLED):
        rest = [conditional(layout, tokens[:i]) for i in range(len(tokens), BLOCK)]
        law[tokens] += weight * (np.array(rest[0]) if rest else 1.0)
    return law


@pytest.mark.parametrize("layout", ["same-step", "grouped"])
def test_a_round_has_the_target_s_law(layout: LayoutKind) -> None:
    law = of_a_round(layout, "position")
    assert law.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(law, exact(layout, BLOCK), atol=1e-9)


def test_the_published_order_has_another_law() -> None:
    law = of_a_round("grouped", "confidence")
    assert law.sum() == pytest.approx(1.0)
    assert np.abs(law - exact("grouped", BLOCK)).sum() > 0.01


def test_a_draft_of_the_same_law_is_accepted_as_a_whole() -> None:
    """One layer each: a slot in its group is the native step, so that p is the q that was drawn from."""
    model = tiny_diffusion(3, vocab=4, width=8, layers=1, sharpness=0.8)
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0))
    options = DiffusionOptions(order="position", layout="grouped")
    decoder = SimSD(model, model, [1, 2, 0, 1], sampler, options)
    assert [decoder.round(100).accepted for _ in range(12)] == [4] * 12
    decoder.close()


def test_the_law_over_rounds() -> None:
    from scipy.stats import chisquare  # type: ignore[import-untyped]

    length, draws = 3, 500
    options = DiffusionOptions(order="position", layout="same-step")
    counts = np.zeros((MASK,) * length)
    for seed in range(draws):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        decoder = SimSD(TARGET, DRAFT, PROMPT, sampler, options)
        text: list[int] = []
        while len(text) < length:
            text += decoder.round(100).tokens
        decoder.close()
        counts[tuple(text[:length])] += 1
    expected = exact("same-step", length).ravel() * draws
    order = np.argsort(expected)
    groups = np.arange(order.size) // 3  # rare texts are counted together
    sums = np.bincount(groups, expected[order])
    assert sums.min() > 5
    assert chisquare(np.bincount(groups, counts.ravel()[order]), sums).pvalue > 1e-3
