"""The exact law of the first tokens of a text, from a device's own plain logits, and a test against it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specport.conformance.steps import Probe
from specport.core.ports import CacheHandle
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler

Text = tuple[int, ...]
REST: Text = ()  # all texts that are too unlikely to be counted one by one
_LIKELY = 2e-3  # a prefix below it is not followed any further


@dataclass(frozen=True)
class Law:
    """texts: probability of each likely text; what is missing to 1 is that of all others together."""

    texts: Mapping[Text, float]

    def chi_square(self, drawn: Sequence[Text]) -> tuple[float, float]:
        """Pearson's statistic of these draws, and what it exceeds with probability 1e-5 under the law.

        Texts that are expected fewer than 5 times are counted together.
        """
        n = len(drawn)
        expected = {text: n * p for text, p in self.texts.items() if n * p >= 5}
        expected[REST] = max(n - sum(expected.values()), 0.0)
        seen = Counter(text if text in expected else REST for text in drawn)
        if expected[REST] < 1:  # too few to divide by: with the least likely text they are one cell
            least = min((text for text in expected if text != REST), key=lambda text: expected[text])
            expected[least] += expected.pop(REST)
            seen[least] += seen.pop(REST, 0)
        statistic = sum((seen[text] - e) ** 2 / e for text, e in expected.items())
        return statistic, _critical(max(1, len(expected) - 1))


def laws_of(probe: Probe, handle: CacheHandle, root: int, params: SamplingParams, length: int) -> list[Law]:
    """Of 1, 2, ... `length` tokens after `root`, which follows what is committed. Rows are stepped alone."""
    sampler = Sampler(params)
    laws = []
    texts: dict[Text, float] = {(): 1.0}
    for _ in range(length):
        grown: dict[Text, float] = {}
        for text, chance in texts.items():
            if chance < _LIKELY:
                continue
            start = handle.length
            logits = probe.feed(handle, [[token] for token in (root, *text)])[-1].astype(np.float64)
            probe.model.truncate(handle, start)
            p = chance * sampler.distribution(logits, ())
            grown |= {(*text, int(t)): float(p[t]) for t in np.flatnonzero(p > _LIKELY / 20)}
        texts = grown
        laws.append(Law(texts))
    return laws


def _critical(freedom: int) -> float:
    """The chi-square value that is exceeded with probability 1e-5 (Wilson and Hilferty, 1931)."""
    normal = 4.265  # the standard normal value exceeded with probability 1e-5
    share = 2 / (9 * freedom)
    return freedom * (1 - share + normal * math.sqrt(share)) ** 3
