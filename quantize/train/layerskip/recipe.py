"""LayerSkip's recipe: layer dropout, losses at exits, and measurements. Plain numbers, no torch.

Formulas of arXiv 2404.16710, sections 4.1 and 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from specport.quantize.train import pace

from specport.errors import InvalidInput

CURRICULA = ("rotational", "gradual")


@dataclass(frozen=True)
class Recipe:
    """How a target is trained to exit early. Defaults are the paper's for continued training.

    dropout:      probability that the last layer is skipped for a text; it falls to 0 at the first layer.
    exit_scale:   weight of the exits' losses beside the whole model's loss.
    curriculum:   "rotational": every `every`-th layer has a loss, another set in each step. "gradual": only
                  the last layer at first, and one more layer every T / (2 L) of T steps.
    batch_tokens: prompt and answer tokens of a step.
    epochs:       times that each text is read.
    Raises InvalidInput for values out of range.
    """

    dropout: float = 0.1
    exit_scale: float = 0.2
    curriculum: str = "rotational"
    every: int = 8
    epochs: float = 1.0
    learning_rate: float = 2e-4
    batch_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.curriculum not in CURRICULA:
            known = ", ".join(CURRICULA)
            raise InvalidInput(f"unknown curriculum {self.curriculum!r}", f"choose one of {known}")
        if not 0.0 <= self.dropout < 1.0 or not 0.0 <= self.exit_scale < math.inf or self.every < 1:
            raise InvalidInput(
                "dropout must be at least 0 and below 1, the exit scale 0 or more, and every 1 or more"
            )
        pace.check(self)


def dropout_rates(num_layers: int, most: float) -> list[float]:
    """Return each layer's probability of being skipped: `most` times exp(l ln 2 / (L - 1)) - 1."""
    return [
        most * (math.exp(layer * math.log(2) / max(1, num_layers - 1)) - 1) for layer in range(num_layers)
    ]


def exit_weights(num_layers: int, scale: float, enabled: Sequence[int]) -> dict[int, float]:
    """Return the weight of the loss after each of the `enabled` layers; the weights sum to 1.

    e(l) = scale (0 + 1 + ... + l), and for the last layer L - 1 + scale (0 + 1 + ... + L - 2).
    """
    last = num_layers - 1

    def weight(layer: int) -> float:
        if layer == last:
            return last + scale * (last - 1) * last / 2
        return scale * layer * (layer + 1) / 2

    weights = {layer: weight(layer) for layer in enabled}
    total = sum(weights.values())
    return {layer: value / total for layer, value in weights.items() if value > 0}


def enabled_layers(recipe: Recipe, num_layers: int, step: int, num_steps: int) -> list[int]:
    """Return the layers that have a loss in this step; the last layer always has one."""
    last = num_layers - 1
    if recipe.curriculum == "gradual":
        count = 1 + (2 * num_layers * step) // max(1, num_steps)
        return [layer for layer in range(num_layers) if layer > last - count]
    return [n for n in range(num_layers) if n == last or (n - step) % recipe.every == 0]


@dataclass(frozen=True)
class Sweep:
    """Measurements of every exit on text that the target wrote before training.

    agreement:  after 1, 2, ... L layers: the share of the text's tokens that the exit proposes.
    perplexity: of the whole model; None where training diverged.
    """

    agreement: tuple[float, ...]
    perplexity: float | None
