"""How a draft is distilled. Plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specport.quantize.train import pace

from specport.errors import InvalidInput

# Kullback-Leibler divergence from the target, cross-entropy of its tokens, and total variation, which is what
# sampled acceptance depends on (LK losses, arXiv 2602.23881).
LOSSES = ("kl", "ce", "tv")


@dataclass(frozen=True)
class Recipe:
    """How a draft is distilled. Raises InvalidInput for values out of range.

    loss:         one of LOSSES.
    epochs:       times that each text is read; 0 = no training.
    batch_tokens: prompt and answer tokens of a step.
    precision:    of the stored draft; weights that will be INT4 are rounded during training (`rounding.py`).
    parallel:     tokens that one pass of the draft is trained to propose (`parallel/`); 0 = token by token.
    """

    loss: str = "kl"
    epochs: float = 3.0
    learning_rate: float = 2e-5
    batch_tokens: int = 1024
    seed: int = 0
    precision: str = "fp32"
    parallel: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InvalidInput(f"unknown loss {self.loss!r}", f"choose one of {', '.join(LOSSES)}")
        pace.check(self, may_be_none=True)
        pace.check_parallel(self.parallel)
