"""How a pair model is trained. Plain numbers, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specport.quantize.train import decoders, pace

from specport.errors import InvalidInput

_MORE = 4  # a step of on-policy distillation has so many times the texts: answers are written side by side


def check_decoder(config: Mapping[str, Any]) -> None:
    """Raise ModelError for the configuration of a decoder that cannot be trained."""
    decoders.check(config, "read pairs")


@dataclass(frozen=True)
class Recipe:
    """Hold how a pair model is trained. Raises InvalidInput for values out of range.

    epochs:        times that each text is read in supervised training; the paper has 2.
    learning_rate: of AdamW. The paper has 1e-4 for 96,000 long texts; few short ones need more.
    batch_tokens:  prompt and answer tokens of a step; of four times as many where it answers by itself.
    rank, alpha, dropout: of the low-rank updates (LoRA) of the decoder's layers.
    pad_share:     most of the answers' pairs that are split into two tokens with PAD; a step draws its share.
    distil_epochs: times that each text's prompt is answered in on-policy distillation; 0 = none.
    distil_rate:   its learning rate.
    rollout:       tokens of such an answer, at most.
    rollout_threshold: confidence from which second tokens are kept in it.
    """

    epochs: float = 2.0
    learning_rate: float = 5e-4
    batch_tokens: int = 1024
    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.05
    pad_share: float = 0.25
    distil_epochs: float = 0.0
    distil_rate: float = 1e-4
    rollout: int = 64
    rollout_threshold: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        pace.check(self)
        positive = ("rank", "alpha", "distil_rate", "rollout")
        for name in positive:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InvalidInput(f"{name} is {value}; it must be greater than 0")
        if not 0 <= self.distil_epochs < math.inf:
            raise InvalidInput(f"distil_epochs is {self.distil_epochs}; it must be 0 or more")
        for name in ("dropout", "pad_share", "rollout_threshold"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise InvalidInput(f"{name} is {value}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class Pace:
    """Hold what the training loop reads of a recipe (`train.pace.Pace`), for one of its two stages."""

    epochs: float
    learning_rate: float
    batch_tokens: int
    seed: int

    @classmethod
    def supervised(cls, recipe: Recipe) -> Pace:
        return cls(recipe.epochs, recipe.learning_rate, recipe.batch_tokens, recipe.seed)

    @classmethod
    def on_policy(cls, recipe: Recipe) -> Pace:
        tokens = _MORE * recipe.batch_tokens
        return cls(recipe.distil_epochs, recipe.distil_rate, tokens, recipe.seed + 1)


@dataclass(frozen=True)
class Examined:
    """Hold how a pair model does on held-out text of the original, without PAD in the answers.

    first, second: share of the text's tokens that are likeliest, by their place in a pair.
    loss_first, loss_second: cross-entropy, nats a token; None where training diverged.
    kept:      share of second tokens with a confidence of 0.95 or more. right: share of those that are right.
    """

    first: float
    second: float
    loss_first: float | None
    loss_second: float | None
    kept: float
    right: float
