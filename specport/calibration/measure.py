"""Measurement of a model's step costs through the `Model` port. Knows no runtime.

Each width is stepped twice in a row, in a new random order of widths in each round. The first of the two
steps shows the cost of a change of width, the second the cost of the step itself. Median polish separates
machine drift from the cost of a width, medians keep single stalls out, and costs never fall with the width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specport.calibration.other_load import BUSY_CORES, OtherLoad
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Block, Model, Row
from specport.progress import Progress, silent

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
CONTEXTS = (64, 512, 2048)
MIN_ROUNDS, MAX_ROUNDS = 5, 25
OUTLIER = 1.5  # times the median
_CHUNK = 512  # prompt tokens a step, as in the engine


@dataclass(frozen=True)
class Outlier:
    """A timing far above the median, which the median ignores."""

    width: int
    context: int
    seconds: float
    median: float


@dataclass(frozen=True)
class Measured:
    """Step costs with their reliability.

    spread: [contexts][widths] interquartile range over median.
    rounds: fewest rounds of any context.
    other_cores: cores that other programs used meanwhile, on average.
    """

    costs: StepCosts
    spread: tuple[tuple[float, ...], ...]
    outliers: tuple[Outlier, ...]
    rounds: int
    other_cores: float = 0.0

    @property
    def busy(self) -> bool:
        """Return whether other programs kept the machine busy."""
        return self.other_cores >= BUSY_CORES


def measure(
    model: Model,
    *,
    widths: Sequence[int] = WIDTHS,
    contexts: Sequence[int] = CONTEXTS,
    budget_s: float = 40.0,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Time steps of each width at each context, for about `budget_s` seconds without prompts.

    Contexts that do not fit the model are left out. A model's buckets replace `widths`.

    clock: returns seconds.
    """
    narrowest = model.capabilities.min_width
    widths = sorted({max(width, narrowest) for width in model.capabilities.buckets or widths})
    fitting = [context for context in contexts if context + widths[-1] <= model.max_context]
    contexts = fitting or [max(1, model.max_context - widths[-1])]
    rng = np.random.default_rng(0)
    ids = [int(i) for i in rng.integers(0, model.vocab_size, contexts[-1] + widths[-1])]
    steady: dict[tuple[int, int], list[float]] = {(c, w): [] for c in contexts for w in widths}
    changes: list[float] = []
    rounds: list[int] = []
    load = OtherLoad()

    def timed(row: Row) -> float:
        """Return the seconds of a step; its tokens are dropped again."""
        began = clock()
        model.step([row])
        seconds = clock() - began
        model.commit(row.handle, ())
        return seconds

    handle = model.open(contexts[-1] + widths[-1])
    try:
        for number, context in enumerate(contexts):
            progress(f"reading {context} tokens", number / len(contexts))
            _read(model, handle, ids[:context])
            began, count = clock(), 0
            end = began + budget_s / len(contexts)
            while count < MIN_ROUNDS + 1 or (count < MAX_ROUNDS and clock() < end):
                for width in rng.permutation(widths).tolist():
                    row = Row(handle, Block.chain(ids[context : context + width]))
                    first, second = timed(row), timed(row)
                    if count:  # the first round is a warm-up
                        steady[context, width].append(second)
                        changes.append(first - second)
                count += 1
                share = min(1.0, (clock() - began) / max(end - began, 1e-9))
                progress(f"steps at {context} tokens", (number + share) / len(contexts))
            rounds.append(count - 1)
    finally:
        model.close(handle)
    table = tuple(tuple(rising(typical([steady[c, w] for w in widths]))) for c in contexts)
    medians = {(c, w): table[i][j] for i, c in enumerate(contexts) for j, w in enumerate(widths)}
    change = max(0.0, statistics.median(changes)) / table[0][0]
    outliers = tuple(
        Outlier(w, c, seconds, medians[c, w])
        for (c, w), times in steady.items()
        for seconds in times
        if seconds > OUTLIER * medians[c, w]
    )
    spread = tuple(tuple(_spread(steady[c, w]) for w in widths) for c in contexts)
    if narrowest > 1:  # a single token costs as much as what it is padded to
        widths, table = [1, *widths], tuple((row[0], *row) for row in table)
        spread = tuple((row[0], *row) for row in spread)
    costs = StepCosts(tuple(widths), tuple(contexts), table, change, measured=True)
    return Measured(costs, spread, outliers, min(rounds), load.cores())


def _read(model: Model, handle: object, ids: Sequence[int]) -> None:
    """Extend the sequence to exactly these tokens; its present tokens must be their beginning."""
    for start in range(handle.length, len(ids), _CHUNK):  # type: ignore[attr-defined]
        chunk = ids[start : start + _CHUNK]
        model.step([Row(handle, Block.chain(chunk), logits="last")])
        model.commit(handle, range(len(chunk)))


def typical(times: Sequence[Sequence[float]]) -> list[float]:
    """Return one time per width from [widths][rounds], by median polish of the logarithms.

    A round in which the whole machine was slow counts as a slow round, not as slow widths.
    """
    logs = np.log(np.asarray(times))
    level, shape = np.zeros(logs.shape[1]), np.zeros(logs.shape[0])
    for _ in range(10):
        shape = np.median(logs - level, axis=1)
        level = np.median(logs - shape[:, None], axis=0)
    return [float(value) for value in np.exp(shape + np.median(level))]


def rising(values: Sequence[float]) -> list[float]:
    """Return the nearest non-decreasing values (least squares): a wider step is not cheaper but for noise.

    Isotonic regression by pooling adjacent violators.
    """
    pools: list[tuple[float, int]] = []  # (mean, number of values)
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [mean for mean, count in pools for _ in range(count)]


def _spread(times: Sequence[float]) -> float:
    """Return the interquartile range over the median."""
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / statistics.median(times)
