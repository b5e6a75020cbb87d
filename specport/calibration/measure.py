"""Measures what a model's steps cost, through the `Model` port alone. Knows no runtime.

Every width is stepped twice in a row, and the widths come in another order in each round: the first of
the two shows what a change of width costs, the second what the step itself does. The machine's drift
is told apart from what a width costs, medians keep single stalls out, and a wider step never comes
out cheaper.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Model, Row
from specport.core.tree import TokenTree
from specport.progress import Progress, silent

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
CONTEXTS = (64, 512, 2048)
MIN_ROUNDS, MAX_ROUNDS = 5, 25
OUTLIER = 1.5  # times the median
_CHUNK = 512  # prompt tokens a step, as in the engine


@dataclass(frozen=True)
class Outlier:
    """A timing that was left to the median to throw out."""

    width: int
    context: int
    seconds: float
    median: float


@dataclass(frozen=True)
class Measured:
    """costs, the spread of each cell (interquartile range over median), outliers and rounds."""

    costs: StepCosts
    spread: tuple[tuple[float, ...], ...]
    outliers: tuple[Outlier, ...]
    rounds: int


def measure(
    model: Model,
    *,
    widths: Sequence[int] = WIDTHS,
    contexts: Sequence[int] = CONTEXTS,
    budget_s: float = 40.0,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Time steps of each width at each context; about `budget_s` seconds, prompts not counted.

    A context that does not fit the model is left out; buckets replace the widths where a model has them.
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
    handle = model.open(contexts[-1] + widths[-1])
    try:
        for number, context in enumerate(contexts):
            progress(f"reading {context} tokens", number / len(contexts))
            _read(model, handle, ids[:context])
            began, count = clock(), 0
            end = began + budget_s / len(contexts)
            while count < MIN_ROUNDS + 1 or (count < MAX_ROUNDS and clock() < end):
                for width in rng.permutation(widths).tolist():
                    row = Row(handle, TokenTree.chain(ids[context : context + width]))
                    first, second = _timed(model, row, clock), _timed(model, row, clock)
                    if count:  # the first round warms up
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
    if narrowest > 1:  # a single token costs what it is padded to
        widths, table = [1, *widths], tuple((row[0], *row) for row in table)
        spread = tuple((row[0], *row) for row in spread)
    costs = StepCosts(tuple(widths), tuple(contexts), table, change, measured=True)
    return Measured(costs, spread, outliers, min(rounds))


def _read(model: Model, handle: object, ids: Sequence[int]) -> None:
    """Bring the sequence to exactly these tokens; what is there already is their beginning."""
    for start in range(handle.length, len(ids), _CHUNK):  # type: ignore[attr-defined]
        chunk = ids[start : start + _CHUNK]
        model.step([Row(handle, TokenTree.chain(chunk), logits="last")])
        model.commit(handle, range(len(chunk)))


def _timed(model: Model, row: Row, clock: Callable[[], float]) -> float:
    """Seconds of a step whose tokens are thrown away again."""
    began = clock()
    model.step([row])
    seconds = clock() - began
    model.commit(row.handle, ())
    return seconds


def typical(times: Sequence[Sequence[float]]) -> list[float]:
    """One time for each width out of all rounds, [widths][rounds], by median polish of the logarithms.

    A round in which the whole machine was slow counts as a slow round, not as slow widths.
    """
    logs = np.log(np.asarray(times))
    level, shape = np.zeros(logs.shape[1]), np.zeros(logs.shape[0])
    for _ in range(10):
        shape = np.median(logs - level, axis=1)
        level = np.median(logs - shape[:, None], axis=0)
    return [float(value) for value in np.exp(shape + np.median(level))]


def rising(values: Sequence[float]) -> list[float]:
    """The nearest values (least squares) that never fall: a wider step is not cheaper, noise says so.

    Isotonic regression by pooling adjacent violators.
    """
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [mean for mean, count in pools for _ in range(count)]


def _spread(times: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / statistics.median(times)
