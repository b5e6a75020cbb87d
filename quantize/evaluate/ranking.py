"""Rank weight formats: targets by step costs at equal quality, drafts by acceptance over cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.1  # of the baseline's KL
WIDEST = 8  # new tokens of a usual verify step


@dataclass(frozen=True)
class Candidate:
    """A target's format. kl: to its source, nats a token. steps: new tokens -> milliseconds."""

    kl: float
    steps: Mapping[int, float]


@dataclass(frozen=True)
class Rank:
    """Where a target's format stands.

    place: 1 = best; formats that lose quality stand behind all that do not.
    keeps_quality: whether its KL is at most the baseline's, plus TOLERANCE.
    cost:  of its steps of 1 to WIDEST new tokens, geometric mean, as a share of the baseline's.
    """

    place: int
    keeps_quality: bool
    cost: float


def rank(candidates: Sequence[Candidate], baseline: int) -> list[Rank]:
    """Rank formats of a target. baseline: index of the one whose quality is to be kept."""
    base = candidates[baseline]
    costs = [_ratio(each.steps, base.steps) for each in candidates]
    keeps = [each.kl <= base.kl * (1 + TOLERANCE) for each in candidates]
    order = sorted(range(len(candidates)), key=lambda i: (not keeps[i], costs[i]))
    return [Rank(order.index(i) + 1, keeps[i], costs[i]) for i in range(len(candidates))]


def _ratio(steps: Mapping[int, float], base: Mapping[int, float]) -> float:
    logs = [math.log(steps[width] / base[width]) for width in steps if width <= WIDEST and width in base]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


@dataclass(frozen=True)
class SpeedUp:
    """What a draft is worth at its best length.

    factor: plain decoding's time per token over that of rounds of `length` draft tokens.
    """

    factor: float
    length: int


def speed_up(
    survival: Sequence[float],
    draft: Mapping[int, float],
    target: Mapping[int, float],
    *,
    parallel: bool = False,
) -> SpeedUp:
    """Return the speed-up of the best fixed length, 0 where nothing is accepted to any depth.

    Arguments as for `speed_ups`.
    """
    factors = speed_ups(survival, draft, target, parallel=parallel)
    if not factors:
        return SpeedUp(0.0, 0)
    best = max(range(len(factors)), key=factors.__getitem__)
    return SpeedUp(factors[best], best + 1)


def speed_ups(
    survival: Sequence[float],
    draft: Mapping[int, float],
    target: Mapping[int, float],
    *,
    parallel: bool = False,
) -> list[float]:
    """Return the speed-ups over plain decoding with rounds of 1, 2, ... draft tokens.

    Text may get less: the width of steps changes there, and the models share the processor's caches.

    survival: chance that the draft tokens of depth 1, 2, ... are all accepted.
    draft, target: new tokens -> milliseconds of a step.
    parallel: whether one draft step drafts all tokens. It also reads what the round before committed. Else
              the first draft step of a round reads two tokens.
    """
    found, tokens = [], 1.0
    for length, share in enumerate(survival, start=1):
        tokens += share
        if parallel:
            drafting = _at(draft, round(tokens) + length - 1)
        else:
            drafting = _at(draft, 2) + (length - 1) * _at(draft, 1)
        found.append(tokens * _at(target, 1) / (drafting + _at(target, length + 1)))
    return found


def _at(steps: Mapping[int, float], width: int) -> float:
    """Return a step's milliseconds, interpolated between measured widths."""
    widths = sorted(steps)
    return float(np.interp(width, widths, [steps[each] for each in widths]))
