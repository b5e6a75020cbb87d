"""Let several transcriptions use one speech model."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specport.speech.ports import Decoded, SpeechModel, Window

Features = NDArray[np.float32]


class SharedModel:
    """Call a model from several threads, one after the other."""

    def __init__(self, model: SpeechModel) -> None:
        self._model, self._lock = model, threading.Lock()
        self.tokens, self.mel_bins, self.max_prompt = model.tokens, model.mel_bins, model.max_prompt

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        with self._lock:
            return self._model.decode(windows)

    def language(self, features: Features) -> dict[str, float]:
        with self._lock:
            return self._model.language(features)

    def align(self, features: Features, prompt: Sequence[int], ids: Sequence[int]) -> Features:
        with self._lock:
            return self._model.align(features, prompt, ids)

    def forget(self) -> None:
        with self._lock:
            self._model.forget()

    def close(self) -> None:
        with self._lock:
            self._model.close()
