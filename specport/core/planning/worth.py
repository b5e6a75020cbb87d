"""What a token of a text is worth: the measure of everything that is drafted. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

_DECAY = 0.93  # of past rounds, for each round
_WEIGHT = 8.0  # rounds that are assumed before the first
# What a token took in them, in plain steps: less where drafters without a model bring tokens for nothing.
_ALONE, _BESIDE_FREE = 1.0, 0.7


@dataclass
class Worth:
    """Estimate what a token is worth: the time that decoding one takes at present, in plain steps.

    A draft pays where it brings its tokens for less. To maximize what tokens are worth, less the time spent,
    maximizes tokens per second (Dinkelbach's method for ratios). Plain decoding is always possible, so a
    token is never worth more than a plain step.
    """

    _steps: float
    _tokens: float = _WEIGHT

    @classmethod
    def at_first(cls, *, free: bool) -> Worth:
        """Return the estimate before the first round. free: whether a drafter without a model drafts."""
        return cls(_WEIGHT * (_BESIDE_FREE if free else _ALONE))

    @property
    def plain_steps(self) -> float:
        return min(1.0, self._steps / self._tokens)

    def learn(self, steps: float, num_tokens: int) -> None:
        """Learn from a round. steps: its modelled time, in plain steps."""
        self._steps = _DECAY * self._steps + steps
        self._tokens = _DECAY * self._tokens + num_tokens
