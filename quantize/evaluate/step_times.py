"""Time several loaded models in turns: plain decoding, prompts, and steps of several new tokens.

All times are taken through the `Model` port, as the engine runs it. Knows no runtime.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from specport.core.engine import Engine
from specport.core.ports import Block, CacheHandle, Model, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.progress import Progress

WIDTHS = (1, 2, 4, 8, 16)
CONTEXT = 256
DECODE_TOKENS = 24
ROUNDS, WARM = 7, 1
_CHUNK = 512  # prompt tokens a step, as in the engine


@dataclass(frozen=True)
class Times:
    """Median and quartiles of a time, in milliseconds."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Return the interquartile range over the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Timing:
    """Times of one model.

    tpot:  of a token of plain decoding; ttft: to the first token after the prompt.
    steps: new tokens -> a step of that many, behind `Plan.context` tokens.
    """

    tpot: Times
    ttft: Times
    steps: dict[int, Times]

    @property
    def medians(self) -> dict[int, float]:
        """Return new tokens -> median milliseconds of a step."""
        return {width: times.median for width, times in self.steps.items()}

    @property
    def spread(self) -> float:
        """Return the largest spread of any of the times."""
        return max(times.spread for times in (self.tpot, self.ttft, *self.steps.values()))


@dataclass(frozen=True)
class Plan:
    """What is timed.

    prompt:  token ids of the prompt that is read and answered.
    context: tokens in the cache before a step; must be at least 1.
    rounds:  measured rounds, after WARM others; at least 2.
    """

    prompt: Sequence[int]
    context: int = CONTEXT
    widths: Sequence[int] = WIDTHS
    rounds: int = ROUNDS


def measure(
    loads: Sequence[Callable[[], Model]],
    plan: Plan,
    together: bool,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Return the times of each model.

    together: all models are loaded at once and timed in turns, forwards and backwards, so that drift of the
              machine affects all of them alike; else one after another.
    """
    timed: list[Timing] = []
    for group in [loads] if together else [[load] for load in loads]:
        progress("timing", len(timed) / len(loads))
        subjects = [_Subject(load(), plan, clock) for load in group]
        for number in range(WARM + plan.rounds):
            for subject in subjects[:: -1 if number % 2 else 1]:
                subject.round(keep=number >= WARM)
            done = (number + 1) / (WARM + plan.rounds) * len(subjects)
            progress("timing", (len(timed) + done) / len(loads))
        timed += [subject.close() for subject in subjects]
        del subjects  # and their models, before the next one is loaded
    return timed


class _Subject:
    """One model with the times taken so far, in seconds."""

    def __init__(self, model: Model, plan: Plan, clock: Callable[[], float]) -> None:
        self._model, self._plan, self._clock = model, plan, clock
        widest = max(model.capabilities.buckets, default=None)
        self._widths = [width for width in plan.widths if widest is None or width <= widest]
        self._first: list[float] = []
        self._later: list[float] = []
        self._steps: dict[int, list[float]] = {width: [] for width in self._widths}
        self._ids = [plan.prompt[i % len(plan.prompt)] for i in range(plan.context + max(plan.widths))]
        self._rng = np.random.default_rng(0)  # the same orders of widths for every model
        self._handle: CacheHandle | None = None

    def round(self, *, keep: bool) -> None:
        """Time an answer, and each width in a new random order."""
        first, later = self._decode()
        steps = {width: self._step(width) for width in self._rng.permutation(self._widths).tolist()}
        if keep:
            self._first.append(first)
            self._later += later
            for width, seconds in steps.items():
                self._steps[width].append(seconds)

    def close(self) -> Timing:
        """Give the cache back and return the times."""
        if self._handle is not None:
            self._model.close(self._handle)
        steps = {width: quartiles(seconds) for width, seconds in self._steps.items()}
        return Timing(quartiles(self._later), quartiles(self._first), steps)

    def _decode(self) -> tuple[float, list[float]]:
        """Return the seconds to the first token of a plain answer, and those of each later token.

        No token ends the answer.
        """
        engine = Engine(self._model)
        stamps = [self._clock()]
        generation = Generation([*self._plan.prompt], SamplingParams(), 1 + DECODE_TOKENS)
        stamps += [self._clock() for _ in engine.run([generation])]
        first, *others = (b - a for a, b in pairwise(stamps))
        return first, others

    def _step(self, width: int) -> float:
        """Return the seconds of the second of two steps: the first one pays for the change of width."""
        handle, context = self._opened(), self._plan.context
        row = Row(handle, Block.chain(self._ids[context : context + width]))
        seconds = 0.0
        for _ in range(2):
            began = self._clock()
            self._model.step([row])
            seconds = self._clock() - began
            self._model.commit(handle, ())
        return seconds

    def _opened(self) -> CacheHandle:
        """Return the sequence of `context` tokens behind which steps are timed."""
        if self._handle is None:
            self._handle = self._model.open(len(self._ids))
            for start in range(0, self._plan.context, _CHUNK):
                chunk = self._ids[start : min(start + _CHUNK, self._plan.context)]
                self._model.step([Row(self._handle, Block.chain(chunk), logits="none")])
                self._model.commit(self._handle, range(len(chunk)))
        return self._handle


def quartiles(seconds: Sequence[float]) -> Times:
    """Return median and quartiles in milliseconds."""
    low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
    return Times(median, low, high)
