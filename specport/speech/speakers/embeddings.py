"""What a voice sounds like, as a vector: the network of Resemblyzer (Apache-2.0) in numpy.

Three LSTM layers over 1.6 s of mel features; vectors of one voice point the same way. Source: Wan et al.,
Generalized End-to-End Loss for Speaker Verification (2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from specport.progress import Progress, silent
from specport.speech.audio.features import FFT, HOP, mel_filters, spectrogram
from specport.speech.audio.read import RATE, Samples
from specport.speech.audio.vad import lstm_step
from specport.speech.weights import RESEMBLYZER

FRAMES = 160
LENGTH = FRAMES * HOP  # samples of a window
LENGTH_S = LENGTH / RATE
_MELS = 40
_LOUDNESS = 10 ** (-30 / 20)  # quieter audio is made as loud as this
_TOGETHER = 64  # windows

Array = NDArray[np.float32]


class VoiceEncoder:
    """Compute vectors of voices, of length 1."""

    def __init__(self, weights: Mapping[str, Array] | None = None, progress: Progress = silent) -> None:
        self._w = RESEMBLYZER.load(progress) if weights is None else weights

    def embed(self, windows: Sequence[Samples]) -> Array:
        """Return [windows, 256] vectors. Windows have `LENGTH` samples; shorter ones are padded."""
        found = [
            self._embed(np.stack([_mels(window) for window in windows[i : i + _TOGETHER]]))
            for i in range(0, len(windows), _TOGETHER)
        ]
        return np.concatenate(found) if found else np.zeros((0, 256), np.float32)

    def _embed(self, x: Array) -> Array:
        """Return vectors of mel features [windows, frames, bins]."""
        w = self._w
        for layer in range(3):
            inputs = x @ w[f"weight_ih_l{layer}"].T + (w[f"bias_ih_l{layer}"] + w[f"bias_hh_l{layer}"])
            recurrent = np.ascontiguousarray(w[f"weight_hh_l{layer}"].T)
            h = c = np.zeros((len(x), recurrent.shape[0]), np.float32)
            out = np.empty((*x.shape[:2], recurrent.shape[0]), np.float32)
            for step in range(x.shape[1]):
                h, c = lstm_step(inputs[:, step] + h @ recurrent, c)
                out[:, step] = h
            x = out
        raw = np.maximum(x[:, -1] @ w["linear.weight"].T + w["linear.bias"], 0)
        found: Array = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-8)
        return found


def _mels(samples: Samples) -> Array:
    """Return [FRAMES, 40] mel features, not logarithmic."""
    loudness = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
    gain = _LOUDNESS / loudness if 1e-6 < loudness < _LOUDNESS else 1.0
    padded = np.zeros(LENGTH + FFT, np.float32)
    part = samples[:LENGTH]
    padded[FFT // 2 : FFT // 2 + len(part)] = part * gain
    power = spectrogram(padded, FFT, HOP)[:FRAMES]
    return (power @ mel_filters(FFT, _MELS).T).astype(np.float32)
