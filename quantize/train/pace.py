"""The pace of a training: the numbers that every recipe has. Plain, no torch."""

from __future__ import annotations

import math
from typing import Protocol

from specport.errors import InvalidInput
from specport.models.kinds.parallel import MAX_DEPTH

MOST_SEED = (1 << 63) - 1


class Pace(Protocol):
    """The part of a recipe that the training loop reads.

    epochs:       times that each text is read.
    batch_tokens: prompt and answer tokens of a step.
    """

    @property
    def epochs(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...


def check(pace: Pace, *, may_be_none: bool = False) -> None:
    """Raise InvalidInput for values out of range. may_be_none: 0 epochs stand for no training."""
    for name in ("epochs", "learning_rate", "batch_tokens"):
        value = getattr(pace, name)
        if not 0 < value < math.inf and not (may_be_none and name == "epochs" and value == 0):
            least = "0 or more" if may_be_none and name == "epochs" else "greater than 0"
            raise InvalidInput(f"{name.replace('_', ' ')} is {value}; it must be {least}")
    check_seed(pace.seed)


def check_parallel(depth: int) -> None:
    """Raise InvalidInput for a number of tokens of one pass out of range; 0 = token by token."""
    if depth and not 2 <= depth <= MAX_DEPTH:
        raise InvalidInput(f"parallel is {depth}; it must be from 2 to {MAX_DEPTH}, or 0")


def check_seed(seed: int) -> None:
    """Raise InvalidInput for a seed that generators of random numbers do not take."""
    if not 0 <= seed <= MOST_SEED:
        raise InvalidInput(f"seed is {seed}; it must be from 0 to {MOST_SEED}")
