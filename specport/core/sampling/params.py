"""Sampling parameters. Plain data."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from specport.errors import InvalidInput

# A lower temperature means greedy: dividing by it would overflow (vLLM uses the same bound).
GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class SamplingParams:
    """Hold how tokens are chosen; names and meaning as in transformers' GenerationConfig.

    temperature: 0 = greedy.          top_k: 0 = off; tokens tied with the k-th are kept.
    top_p: 1 = off, in (0, 1].        min_p: 0 = off, in [0, 1].
    repetition_penalty: 1 = off, > 0. seed: None = a random one.

    Raises InvalidInput when a value is outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        def require(good: bool, name: str, range_: str) -> None:
            if not good:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be {range_}")

        object.__setattr__(self, "top_k", whole_number("top_k", self.top_k))
        if self.seed is not None:
            object.__setattr__(self, "seed", whole_number("seed", self.seed))
        # Comparisons with nan are False, so nan is rejected too.
        require(0 <= self.temperature < math.inf, "temperature", "0 or more")
        require(self.top_k >= 0, "top_k", "a whole number, 0 or more")
        require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "above 0")
        require(self.seed is None or self.seed >= 0, "seed", "a whole number, 0 or more")

    @property
    def seeded(self) -> bool:
        """Return whether random numbers decide and are to be the same each time."""
        return not self.greedy and self.seed is not None

    @property
    def greedy(self) -> bool:
        """Return whether the likeliest token is always chosen."""
        return self.temperature < GREEDY_BELOW


def whole_number(name: str, value: Any) -> int:
    """Return an integer of any type (NumPy's too) as an int. Raises InvalidInput for anything else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InvalidInput(f"{name} is {value!r}; it must be a whole number") from None
