"""A speech model that says what it was told to, and audio files to give it."""

from __future__ import annotations

import math
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.speech.ports import Decoded, Window

RATE = 16000
STAMP = 1000  # id of <|0.00|>
WORDS = [*"ask not what your country can do for you and so my fellow Americans .".split()]  # noqa: SIM905


@dataclass
class ScriptedTokens:
    """One id a word. Ids 0 to 99 are words, those above the special tokens."""

    multilingual: bool = False
    sot: int = 101
    eot: int = 100
    sot_prev: int = 102
    no_speech: int | None = 103
    no_timestamps: int = 999
    timestamp_begin: int = STAMP
    transcribe: int = 104
    translate: int = 105
    words: list[str] = field(default_factory=lambda: [*WORDS])

    @property
    def languages(self) -> dict[str, int]:
        return {"en": 110, "de": 111} if self.multilingual else {}

    def decode(self, ids: Sequence[int]) -> str:
        found = "".join(" " + self.words[i] for i in ids if i < self.eot)
        return found.replace(" .", ".")

    def encode(self, text: str) -> tuple[int, ...]:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return tuple(self.words.index(word) for word in text.split())


Answer = Decoded | Callable[[Window], Decoded]


class ScriptedModel:
    """Give the next answer of a script for each window; the last one again once the script ends.

    windows: all that were decoded, in order.
    """

    mel_bins, max_prompt = 80, 223

    def __init__(self, script: Sequence[Answer], *, multilingual: bool = False) -> None:
        self.tokens = ScriptedTokens(multilingual)
        self.script = [*script]
        self.windows: list[Window] = []
        self.closed, self.forgotten = False, 0

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        found = []
        for window in windows:
            answer = self.script[min(len(self.windows), len(self.script) - 1)]
            self.windows.append(window)
            found.append(answer if isinstance(answer, Decoded) else answer(window))
        return found

    def language(self, features: Any) -> dict[str, float]:
        return {"en": 0.3, "de": 0.7}

    def align(self, features: Any, prompt: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
        """Attend to half a second for each id."""
        weights = np.full((2, len(ids), 1500), 1e-3, np.float32)
        for i in range(len(ids)):
            weights[:, i, 25 * i : 25 * (i + 1)] = 0.04
        return weights

    def forget(self) -> None:
        self.forgotten += 1

    def close(self) -> None:
        self.closed = True


def stamp(seconds: float) -> int:
    """Return the id of a timestamp."""
    return STAMP + round(seconds / 0.02)


def said(*parts: float | str, logprob: float = -0.2, no_speech: float = 0.01) -> Decoded:
    """Return what a window says: seconds become timestamps, texts the ids of their words.

    logprob: mean of an id.
    """
    tokens = ScriptedTokens()
    ids: list[int] = []
    for part in parts:
        ids += tokens.encode(part) if isinstance(part, str) else [stamp(part)]
    return Decoded(
        tuple(ids), logprob * (len(ids) + 1), no_speech, rounds=max(1, len(ids) // 2), drafted=len(ids),
        accepted=len(ids) // 2, encoder_seconds=0.25, decoder_seconds=0.5,
    )  # fmt: skip


def tone(seconds: float, rate: int = RATE) -> NDArray[np.float32]:
    """Return a sound."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * math.pi * 440 * time)).astype(np.float32)


def write_wav(path: Path, samples: NDArray[Any], rate: int = RATE, channels: int = 1) -> Path:
    """Write 16-bit samples; of several channels, all the same."""
    data = np.repeat((np.clip(samples, -1, 1) * 32767).astype("<i2"), channels)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return path
