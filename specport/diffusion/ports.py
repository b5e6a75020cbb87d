"""The port of diffusion: a model that fills in masks, as decoding sees it."""

from __future__ import annotations

from dataclasses import dataclass

from specport.core.ports import Model
from specport.errors import DeviceError
from specport.models.kinds.diffusion import DiffusionFacts


@dataclass(frozen=True)
class DiffusionModel:
    """Hold a loaded diffusion model.

    Tokens, masks and what they attend to are rows of `Model.step`; `Model.commit` keeps what the cache is to
    hold. The un-cached baseline truncates to 0 before each step. Otherwise whole blocks are kept, read as
    text: never rows of a denoising or verifying step, which attended to other tokens.

    Raises DeviceError for a model whose rows cannot have any mask, or cannot be kept in any order.
    """

    model: Model
    facts: DiffusionFacts

    def __post_init__(self) -> None:
        able = self.model.capabilities
        if able.visibility != "any" or not able.gather:
            raise DeviceError(
                "diffusion needs rows with any attention mask, which this device does not offer",
                "choose the CPU with torch: --device torch-cpu",
            )
