"""How a recurrent draft head is trained. Plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specport.quantize.train import pace

from specport.errors import InvalidInput

LOSSES = ("kl", "tv")


@dataclass(frozen=True)
class Recipe:
    """How a head is trained. Raises InvalidInput for values out of range.

    loss:   one of LOSSES (`train.recipe`), with some cross-entropy.
    epochs, learning_rate, batch_tokens, seed: as for `train.pace.Pace`.
    wrong:  share of the chains that go on behind a token that the head would not have drafted.
    """

    loss: str = "kl"
    epochs: float = 4.0
    learning_rate: float = 5e-4
    batch_tokens: int = 1024
    seed: int = 0
    wrong: float = 0.2

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InvalidInput(f"unknown loss {self.loss!r} of a head", f"choose {' or '.join(LOSSES)}")
        pace.check(self)
        if not 0 <= self.wrong <= 1:
            raise InvalidInput(f"wrong is {self.wrong}; it must be from 0 to 1")
