"""Sampling parameters. Plain data."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specport.errors import InvalidInput

# A lower temperature means greedy: dividing by it would overflow (vLLM uses the same bound).
GREEDY_BELOW = 1e-5
# Within these bounds no score of a float32 logit overflows, so that every probability is a number.
HOTTEST = 100.0
LEAST_PENALTY, MOST_PENALTY = 0.01, 100.0

_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


@dataclass(frozen=True)
class SamplingParams:
    """Hold how tokens are chosen; names and meaning as in transformers' GenerationConfig.

    temperature: 0 = greedy, at most 100. top_k: 0 = off; tokens tied with the k-th are kept.
    top_p: 1 = off, in (0, 1].            min_p: 0 = off, in [0, 1].
    repetition_penalty: 1 = off, in [0.01, 100]. seed: None = a random one.

    The names of these are OpenAI's; they look at the output only, not at the prompt:
    frequency_penalty, presence_penalty: 0 = off, between -2 and 2; subtracted from the logit of a token for
                    each time that it occurs, and once.
    logit_bias:     token id -> amount between -100 and 100 that is added to its logit; kept as pairs.
    min_new_tokens: the text does not end with an end token before it has this many tokens.

    Raises InvalidInput when a value is outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        def require(good: bool, name: str, range_: str) -> None:
            if not good:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be {range_}")

        for name in _REAL:
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        object.__setattr__(self, "top_k", whole_number("top_k", self.top_k))
        if self.seed is not None:
            object.__setattr__(self, "seed", whole_number("seed", self.seed))
        least = whole_number("min_new_tokens", self.min_new_tokens)
        object.__setattr__(self, "min_new_tokens", least)
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        # Comparisons with nan are False, so nan is rejected too.
        require(0 <= self.temperature <= HOTTEST, "temperature", f"between 0 and {HOTTEST:g}")
        require(self.top_k >= 0, "top_k", "a whole number, 0 or more")
        require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        require(
            LEAST_PENALTY <= self.repetition_penalty <= MOST_PENALTY,
            "repetition_penalty",
            f"between {LEAST_PENALTY:g} and {MOST_PENALTY:g}",
        )
        require(self.seed is None or self.seed >= 0, "seed", "a whole number, 0 or more")
        require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "between -2 and 2")
        require(-2 <= self.presence_penalty <= 2, "presence_penalty", "between -2 and 2")
        require(self.min_new_tokens >= 0, "min_new_tokens", "a whole number, 0 or more")

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


def real_number(name: str, value: Any) -> float:
    """Return a number of any type as a float. Raises InvalidInput for anything else."""
    if not isinstance(value, (bool, str, bytes)):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise InvalidInput(f"{name} is {value!r:.100}; it must be a number")


def _pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """Return a bias by token id as pairs in the order of the ids. Raises InvalidInput where it is none."""
    pairs = bias.items() if isinstance(bias, Mapping) else bias
    try:
        found = {whole_number("a token id of logit_bias", token): float(amount) for token, amount in pairs}
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(f"logit_bias is {bias!r:.200}; it must be numbers by token id") from None
    for token, amount in found.items():
        if token < 0 or not -100 <= amount <= 100:
            raise InvalidInput(
                f"logit_bias has {amount} for token {token}; ids are 0 or more, amounts between -100 and 100"
            )
    return tuple(sorted(found.items()))
