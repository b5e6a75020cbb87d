"""How a draft for a speech model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specport.quantize.train import pace

from specport.errors import InvalidInput


@dataclass(frozen=True)
class Recipe:
    """How a cut decoder is distilled. Raises InvalidInput for values out of range.

    epochs:       times that each window is read.
    batch_tokens: tokens of a step, those of prompts included: about one window, since there are few of them.
    parallel:     tokens that one pass drafts; 0 = token by token.
    kl, ce:       weights of the divergence from the target and of the cross-entropy of its text, as in
                  Distil-Whisper (arXiv 2311.00430, section 4).
    """

    epochs: float = 10.0
    learning_rate: float = 1e-4
    batch_tokens: int = 256
    kl: float = 0.8
    ce: float = 1.0
    seed: int = 0
    parallel: int = 0

    def __post_init__(self) -> None:
        pace.check(self)
        pace.check_parallel(self.parallel)
        if not (self.kl >= 0 and self.ce >= 0 and 0 < self.kl + self.ce < math.inf):
            raise InvalidInput(f"the weights of the loss are {self.kl} and {self.ce}; one must be above 0")
