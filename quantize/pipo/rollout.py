"""Rollouts: a pair model in training answers prompts in pairs, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from specport.quantize.pipo.network import Caches, PairNetwork
from specport.quantize.pipo.pairing import Ints, Paired, in_pairs


@dataclass(frozen=True)
class Rollout:
    """Hold one answer.

    text:   prompt and answer in the pairs that were written.
    sampled: [steps] the second token that was sampled in each step, kept or not. Step j is what stands behind
            pair `text.ends >= text.start`, number j.
    """

    text: Paired
    sampled: Ints


def rollout(
    network: PairNetwork,
    prompts: Sequence[Ints],
    steps: int,
    threshold: float,
    ends: frozenset[int],
    rng: torch.Generator,
) -> list[Rollout]:
    """Let the model answer prompts, sampled at temperature 1.

    steps: pairs of an answer, at most. threshold: confidence from which second tokens are kept.
    ends: tokens that end an answer.
    """
    from transformers import DynamicCache

    vocab, device = network.vocab, next(network.parameters()).device
    asked = [in_pairs(p, len(p), np.zeros(0, np.bool_), vocab) for p in prompts]
    longest = max(len(a.first) for a in asked)
    first, second, nexts = (torch.zeros(len(asked), longest, dtype=torch.long) for _ in range(3))
    real = torch.zeros(len(asked), longest, dtype=torch.bool)
    for i, text in enumerate(asked):
        at = longest - len(text.first)
        first[i, at:], second[i, at:] = torch.from_numpy(text.first), torch.from_numpy(text.second)
        nexts[i, at:-1], real[i, at:] = torch.from_numpy(text.first[1:]), True
    first, second, nexts, real = (x.to(device) for x in (first, second, nexts, real))
    caches = Caches(DynamicCache(), DynamicCache(), real)
    written: list[list[int]] = [[*map(int, p)] for p in prompts]
    widths: list[list[int]] = [[] for _ in prompts]
    sampled: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    was_training = network.training
    network.eval()
    # Mixed precision would convert all weights in each of these narrow steps.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for _ in range(steps):
            states = network.states(first, second, caches)
            chosen = _sample(network.head(states[:, -1]), rng)
            nexts[:, -1] = chosen
            seconds = network.second_states(states, nexts, caches)
            then = _sample(network.head(seconds[:, -1]), rng)
            sure = network.confidence(states[:, -1], seconds[:, -1]).sigmoid() >= threshold
            keep = sure & ~torch.isin(chosen, torch.tensor([*ends], device=device, dtype=torch.long))
            for i, (x, y, kept) in enumerate(zip(chosen.tolist(), then.tolist(), keep.tolist(), strict=True)):
                if running[i]:
                    written[i] += [x, y] if kept else [x]
                    widths[i].append(1 + kept)
                    sampled[i].append(y)
                    running[i] = not ({x, *([y] if kept else [])} & ends)
            if not any(running):
                break
            first, second = chosen[:, None], torch.where(keep, then, vocab)[:, None]
            nexts = torch.zeros_like(first)
            caches.real = torch.cat([caches.real, torch.ones_like(first, dtype=torch.bool)], dim=1)
    network.train(was_training)
    return [
        Rollout(_paired(written[i], prompts[i], widths[i], vocab), np.asarray(sampled[i], np.int64))
        for i in range(len(prompts))
    ]


def _paired(tokens: list[int], prompt: Ints, widths: list[int], vocab: int) -> Paired:
    """Return a text in the pairs in which its answer was written."""
    text, start = np.asarray(tokens, np.int64), len(prompt)
    every = np.asarray([2] * (start // 2) + [1] * (start % 2) + widths, np.int64)
    ends = np.cumsum(every)
    begins = ends - every
    second = np.where(every == 2, text[np.minimum(begins + 1, len(text) - 1)], vocab)
    return Paired(text, start, text[begins], second, ends)


def _sample(logits: Any, rng: torch.Generator) -> Any:
    probs = logits.float().softmax(-1).cpu()
    return torch.multinomial(probs, 1, generator=rng)[:, 0].to(logits.device)
