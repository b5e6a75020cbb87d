"""Sampled texts of a real runtime against the exact law of its own plain logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specport.conformance.laws import laws_of
from specport.conformance.steps import Probe
from specport.core.engine import Engine
from specport.core.metrics import Metrics
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation

LENGTH = 3  # tokens of a text that are looked at; one more is written, so that the last comes of drafts too
NUM_TEXTS, TOGETHER = 600, 8


def check_sampled_texts(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> list[Metrics]:
    """Fail where seeded texts behind a prompt do not keep the law, by chi-square; return their metrics."""
    target = engine.model
    probe = Probe(target)
    handle = target.open()
    probe.feed(handle, [prompt[:-1]])
    laws = laws_of(probe, handle, prompt[-1], params, LENGTH)
    target.close(handle)
    texts, metrics = [], []
    for first in range(0, NUM_TEXTS, TOGETHER):
        generations = [
            Generation([*prompt], replace(params, seed=first + i), LENGTH + 1) for i in range(TOGETHER)
        ]
        for _ in engine.run(generations):
            pass
        texts += [tuple(g.tokens[len(prompt) : len(prompt) + LENGTH]) for g in generations]
        metrics += [g.metrics for g in generations]
    for n, law in enumerate(laws, 1):
        statistic, critical = law.chi_square([text[:n] for text in texts])
        assert statistic < critical, f"law of {n} tokens: chi-square {statistic:.1f} above {critical:.1f}"
    return metrics
