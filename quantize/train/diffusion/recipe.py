"""How a block-diffusion model is trained, and what is measured of one. Plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specport.quantize.train import pace

from specport.errors import InvalidInput

BLOCK, MOST_BLOCK = 4, 64


@dataclass(frozen=True)
class Recipe:
    """How a block-diffusion model is trained.

    block:        tokens that are denoised together; 0 = as many as in the diffusion model that the training
                  begins with, or BLOCK.
    epochs:       times that each text is read, each time with other masks.
    batch_tokens: prompt and answer tokens of a step.
    Raises InvalidInput for values out of range.
    """

    block: int = 0
    epochs: float = 2.0
    learning_rate: float = 3e-4
    batch_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.block and not 2 <= self.block <= MOST_BLOCK:
            raise InvalidInput(f"a block of {self.block} tokens; it must have from 2 to {MOST_BLOCK}")
        pace.check(self)


@dataclass(frozen=True)
class Quality:
    """Measurements on answers that the model was not trained on, by number of masks in a block.

    accuracy:   with 1, 2, ... masks in a block: the share of the masks whose likeliest token is the text's.
    loss:       mean cross-entropy of the masks' tokens, in nats.
    perplexity: upper bound of that of the answers: exp of the mean loss weighted by 1 / share of masks.
    Losses and perplexity are None where training diverged.
    """

    accuracy: tuple[float, ...]
    loss: tuple[float | None, ...]
    perplexity: float | None

    def __post_init__(self) -> None:
        if len(self.accuracy) != len(self.loss):
            raise ValueError("not one accuracy for each loss")
