"""Voice activity: the network silero-vad (MIT) in numpy, and the stretches of speech that its output gives.

The network is small: four convolutions over 32 ms, and an LSTM of 128 cells over time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specport.progress import Progress, silent
from specport.speech.audio.read import RATE, Samples
from specport.speech.weights import SILERO

FRAME, CONTEXT = 512, 64  # samples of a step, and of the one before that it sees
SECONDS = FRAME / RATE

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """Hold a stretch of time in seconds."""

    start: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.start


class SileroVad:
    """Compute the probability of speech for each 32 ms."""

    def __init__(self, weights: Mapping[str, Array] | None = None, progress: Progress = silent) -> None:
        self._w = SILERO.load(progress) if weights is None else weights

    def probabilities(self, blocks: Iterable[Samples]) -> Array:
        """Return one probability for each 32 ms of an audio; the last one is padded with silence."""
        found: list[Array] = []
        rest, before = np.zeros(0, np.float32), np.zeros(CONTEXT, np.float32)
        state = np.zeros((2, 128), np.float32)
        for block in blocks:
            rest = np.concatenate([rest, block])
            whole = len(rest) // FRAME * FRAME
            if whole < 64 * FRAME:
                continue
            found.append(self._steps(rest[:whole], before, state))
            before, rest = rest[whole - CONTEXT : whole], rest[whole:]
        if len(rest):
            found.append(self._steps(np.pad(rest, (0, -len(rest) % FRAME)), before, state))
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    def _steps(self, samples: Samples, before: Samples, state: Array) -> Array:
        """Return the probabilities of whole frames; `state` is changed to that after them."""
        w = self._w
        joined = np.concatenate([before, samples])
        frames = np.lib.stride_tricks.sliding_window_view(joined, FRAME + CONTEXT)[::FRAME]
        x = self._convolved(np.pad(frames, ((0, 0), (0, 64)), mode="reflect"))
        inputs = x @ w["weight_ih"].T + (w["bias_ih"] + w["bias_hh"])
        recurrent = np.ascontiguousarray(w["weight_hh"].T)
        hidden = np.empty((len(inputs), 128), np.float32)
        h, c = state
        for step, given in enumerate(inputs):
            h, c = lstm_step(given + h @ recurrent, c)
            hidden[step] = h
        state[:] = h, c
        return sigmoid(np.maximum(hidden, 0) @ w["out.weight"] + w["out.bias"])

    def _convolved(self, frames: Array) -> Array:
        """Return [frames, 128] from the magnitudes of a short-time Fourier transform."""
        w = self._w
        cut = np.lib.stride_tricks.sliding_window_view(frames, 256, axis=1)[:, ::128]
        both = cut @ w["stft"].T
        x = np.sqrt(both[..., :129] ** 2 + both[..., 129:] ** 2)
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
            kernel = w[f"{name}.weight"]
            padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
            taps = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)[:, ::stride]
            flat = taps.reshape(*taps.shape[:2], -1)
            x = np.maximum(flat @ kernel.reshape(len(kernel), -1).T + w[f"{name}.bias"], 0)
        return x[:, 0]


def lstm_step(gates: Array, cell: Array) -> tuple[Array, Array]:
    """Return hidden and cell state after a step. gates: [..., 4 * cells], in PyTorch's order i, f, g, o."""
    i, f, g, o = np.split(gates, 4, axis=-1)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x), without overflow."""
    half: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return half


def speech_spans(
    probabilities: NDArray[np.floating],
    *,
    threshold: float = 0.5,
    min_speech: float = 0.25,
    min_silence: float = 0.1,
    pad: float = 0.03,
    seconds: float = SECONDS,
) -> list[Span]:
    """Return the stretches of speech, in order, without overlap.

    Speech begins at `threshold`, and ends where the probability stays 0.15 below it for `min_silence`
    seconds. Stretches shorter than `min_speech` are dropped, the others made longer by `pad` at both ends.
    seconds: of a step of `probabilities`.
    """
    found: list[Span] = []
    start = quiet = None
    low = max(threshold - 0.15, 0.01)
    for step, p in enumerate(probabilities):
        if p >= threshold:
            start, quiet = (step if start is None else start), None
        elif start is not None and p < low:
            quiet = step if quiet is None else quiet
            if (step - quiet) * seconds >= min_silence:
                found.append(Span(start * seconds, quiet * seconds))
                start = quiet = None
    end = len(probabilities) * seconds
    if start is not None:
        found.append(Span(start * seconds, end if quiet is None else quiet * seconds))
    return _padded([span for span in found if span.length >= min_speech], pad, end)


def _padded(spans: list[Span], pad: float, end: float) -> list[Span]:
    """Make spans longer at both ends, at most to the middle of the silence between them."""
    found = []
    for i, span in enumerate(spans):
        before = spans[i - 1].end if i else -span.start
        after = spans[i + 1].start if i + 1 < len(spans) else 2 * end - span.end
        found.append(
            Span(
                max(span.start - pad, (span.start + before) / 2, 0.0),
                min(span.end + pad, (span.end + after) / 2, end),
            )
        )
    return found
