"""Checks drawn texts of a toy model against their exact law, by enumeration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import LogitsProcessor
from specport.core.sampling.sampler import Sampler
from support.toys.toy_model import ToyModel


def check_law(
    counts: NDArray[np.float64],
    target: ToyModel,
    prompt: Sequence[int],
    params: SamplingParams,
    processors: Sequence[LogitsProcessor] = (),
) -> None:
    """Fails where the texts behind `prompt` are not distributed as plain decoding draws them (chi-square).

    counts: [vocab] * length, how often each text was drawn.
    """
    from scipy.stats import chisquare  # type: ignore[import-untyped]

    law = np.zeros_like(counts)
    sampler = Sampler(params, processors)
    for text in np.ndindex(law.shape):
        chance, prefix = 1.0, list(prompt)
        for token in text:
            chance *= float(sampler.distribution(target.table[prefix[-2], prefix[-1]], list(prefix))[token])
            prefix.append(token)
        law[text] = chance
    possible = law > 0
    assert counts[~possible].sum() == 0
    order = np.argsort(law[possible])  # rare texts are counted in groups of 8
    groups = np.arange(order.size) // 8
    observed = np.bincount(groups, counts[possible][order])
    expected = np.bincount(groups, law[possible][order]) / law.sum() * counts.sum()
    assert expected.min() > 5
    assert chisquare(observed, expected).pvalue > 1e-3
