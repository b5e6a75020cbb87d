"""What a window sounds like: its features, and what encoders made of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specport.core.ports import Model, conditioned
from specport.errors import InvalidInput
from specport.runtime.devices.registry import Speech

Features = NDArray[np.float32]


@dataclass(eq=False)
class Heard:
    """Hold the features of a window and the outputs of encoders, each computed at its first use.

    So a draft with the target's encoder takes the target's output, and one with its own computes that once.

    seconds: in encoders so far, as far as they were not told.
    """

    features: Features
    seconds: float = 0.0
    _by_encoder: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def through(self, speech: Speech) -> NDArray[np.float32]:
        """Return what an encoder made of the features: [frames, width]."""
        if speech.key not in self._by_encoder:
            began = time.perf_counter()
            self._by_encoder[speech.key] = speech.encode(self.features)
            self.seconds += time.perf_counter() - began
        return self._by_encoder[speech.key]

    def told(self) -> float:
        """Return the seconds that were not told before."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def listening(model: Model, speech: Speech) -> Model:
    """Return a speech model whose sequences are opened with `Heard`, which they hear through an encoder."""
    return conditioned(model, lambda heard: heard.through(speech))


def checked(features: Features, mel_bins: int, frames: int) -> Features:
    """Return the features of a window. Raises InvalidInput where they do not fit the model."""
    found = np.asarray(features, dtype=np.float32)
    if found.shape != (mel_bins, frames):
        raise InvalidInput(f"features of {found.shape}; this model takes {(mel_bins, frames)}")
    return found
