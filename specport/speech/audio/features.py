"""Log-mel features of Whisper, in numpy.

The same numbers as transformers' WhisperFeatureExtractor (Whisper's `log_mel_spectrogram` on one window).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from specport.speech.audio.read import RATE, Samples
from specport.speech.ports import FRAMES

HOP, FFT = 160, 400  # samples
WINDOW = FRAMES * HOP  # samples of 30 s


def log_mel(samples: Samples, bins: int) -> NDArray[np.float32]:
    """Return [bins, FRAMES] features of at most 30 s of audio, padded with silence."""
    if len(samples) > WINDOW:
        raise ValueError(f"{len(samples)} samples are more than a window")
    padded = np.zeros(WINDOW + FFT, np.float32)
    padded[FFT // 2 : FFT // 2 + len(samples)] = samples
    # Both ends are mirrored, as torch.stft does.
    inner = padded[FFT // 2 : -FFT // 2]
    padded[: FFT // 2] = inner[FFT // 2 : 0 : -1]
    padded[-FFT // 2 :] = inner[-2 : -FFT // 2 - 2 : -1]
    power = spectrogram(padded, FFT, HOP)[:FRAMES]
    logs = np.log10(np.maximum(power @ mel_filters(FFT, bins).T, 1e-10))
    logs = (np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0
    return np.ascontiguousarray(logs.T, np.float32)


def spectrogram(samples: Samples, size: int, hop: int) -> NDArray[np.float64]:
    """Return the power [frames, size / 2 + 1] of Hann windows of this many samples."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    spectrum = np.fft.rfft(frames * hann, axis=-1)
    power: NDArray[np.float64] = spectrum.real**2 + spectrum.imag**2
    return power


@lru_cache
def mel_filters(size: int, bins: int, rate: int = RATE) -> NDArray[np.float64]:
    """Return triangular filters [bins, size / 2 + 1] on Slaney's mel scale, each of area 1 (as librosa's)."""
    edges = _hertz(np.linspace(0.0, _mel(rate / 2), bins + 2))
    frequencies = np.linspace(0.0, rate / 2, size // 2 + 1)
    widths = np.diff(edges)
    slopes = edges[:, None] - frequencies
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    found: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return found * (2.0 / (edges[2:] - edges[:-2]))[:, None]


# Slaney's scale: linear below 1000 Hz, logarithmic above.
_LINEAR, _BREAK = 200.0 / 3, 1000.0
_STEP = np.log(6.4) / 27.0


def _mel(hertz: float) -> float:
    if hertz < _BREAK:
        return hertz / _LINEAR
    return float(_BREAK / _LINEAR + np.log(hertz / _BREAK) / _STEP)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    start = _BREAK / _LINEAR
    high = _BREAK * np.exp(_STEP * (np.maximum(mels, start) - start))
    return np.where(mels < start, mels * _LINEAR, high)
