"""How a diffusion model decodes. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specport.core.sampling.params import real_number, whole_number
from specport.errors import InvalidInput

# The order in which positions of a block are revealed: the surest first, or from left to right.
Order = Literal["confidence", "position"]
# What the data and mask slots of a verifying step attend to; see `specport.diffusion.layout`.
LayoutKind = Literal["released", "same-step", "grouped"]
ORDERS: tuple[Order, ...] = ("confidence", "position")
LAYOUTS: tuple[LayoutKind, ...] = ("released", "same-step", "grouped")


@dataclass(frozen=True)
class DiffusionOptions:
    """Hold how blocks are denoised, and how drafts of blocks are verified.

    block_length: tokens of a block; None = that of the model's training.
    steps:     denoising steps of a block; None = one for each token.
    threshold: reveal all positions whose probability is above it, where they are more than the schedule's
               (`low_confidence_dynamic` of SDAR); None = the schedule alone (`low_confidence_static`).
    order:     "confidence", as the models are trained, or "position". With a draft, "position" and a layout
               without leak give a text that does not depend on the draft. None = "confidence" without a
               draft, "position" with one.
    layout:    of verifying steps. "grouped" is the nearest to native denoising of those without leak.

    Raises InvalidInput for a value outside its range.
    """

    block_length: int | None = None
    steps: int | None = None
    threshold: float | None = None
    order: Order | None = None
    layout: LayoutKind = "grouped"

    def __post_init__(self) -> None:
        for name in ("block_length", "steps"):
            value = getattr(self, name)
            if value is not None and whole_number(name, value) < 1:
                raise InvalidInput(f"{name} is {value}; it must be 1 or more")
        if self.threshold is not None and not 0 < real_number("threshold", self.threshold) < 1:
            raise InvalidInput(f"threshold is {self.threshold}; it must be between 0 and 1")
        for name, known in (("order", ORDERS), ("layout", LAYOUTS)):
            if getattr(self, name) not in (*known, *([None] if name == "order" else [])):
                raise InvalidInput(f"unknown {name} {getattr(self, name)!r}", f"choose {' or '.join(known)}")
