"""The port of speech: windows of audio in, ids out. What recognizes long talks knows no more of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FRAMES = 3000  # frames of log-mel features in a window of 30 s


@dataclass(frozen=True)
class Window:
    """Hold one decode call.

    features: [mels, FRAMES] float32 log-mel features, as transformers' WhisperFeatureExtractor gives.
    prompt: all decoder ids before the text: <|startofprev|> ... <|startoftranscript|> [language, task]
            [<|notimestamps|>].
    timestamps: whether the text is held to Whisper's rules of timestamps.
    temperature: 0 = greedy.
    """

    features: NDArray[np.float32] = field(compare=False)
    prompt: tuple[int, ...]
    timestamps: bool
    temperature: float = 0.0
    seed: int | None = None
    max_new_tokens: int = 224


@dataclass(frozen=True)
class Decoded:
    """Hold what a window says.

    ids: new ids without the end token.
    sum_logprob: of ids and the end token, after suppression and the rules of timestamps, at temperature 1.
    no_speech_prob: at the position of <|startoftranscript|>; nan where the model has no such token.
    rounds, drafted, accepted: steps of the target's decoder, draft tokens, and those that were accepted.
    drafted_per_depth, accepted_per_depth: the same, of the first, second, ... token of a draft.
    encoder_seconds, decoder_seconds: this window's share of time in the runtime.
    """

    ids: tuple[int, ...]
    sum_logprob: float
    no_speech_prob: float
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    encoder_seconds: float = 0.0
    decoder_seconds: float = 0.0
    drafted_per_depth: tuple[int, ...] = ()
    accepted_per_depth: tuple[int, ...] = ()


class SpeechTokens(Protocol):
    """Name Whisper's special tokens, and turn ids into text and back."""

    @property
    def sot(self) -> int: ...

    @property
    def eot(self) -> int: ...

    @property
    def sot_prev(self) -> int: ...

    @property
    def no_speech(self) -> int | None: ...

    @property
    def no_timestamps(self) -> int: ...

    @property
    def timestamp_begin(self) -> int:
        """Return the id of <|0.00|>; each further id stands for 0.02 s."""
        ...

    @property
    def transcribe(self) -> int: ...

    @property
    def translate(self) -> int: ...

    @property
    def languages(self) -> Mapping[str, int]:
        """Return language code -> id, as in `en` -> <|en|>; empty for English-only models."""
        ...

    @property
    def multilingual(self) -> bool: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens and timestamps are left out."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, without special tokens."""
        ...


class SpeechModel(Protocol):
    """Turn windows of features into ids. Not thread-safe."""

    @property
    def tokens(self) -> SpeechTokens: ...

    @property
    def mel_bins(self) -> int: ...

    @property
    def max_prompt(self) -> int:
        """Return the maximum number of ids of previous text in a prompt."""
        ...

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode all windows together, in continuous batches."""
        ...

    def language(self, features: NDArray[np.float32]) -> dict[str, float]:
        """Return the probability of each language. Raises ValueError for an English-only model."""
        ...

    def align(
        self, features: NDArray[np.float32], prompt: Sequence[int], ids: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return [heads, ids, frames] cross-attention weights of the alignment heads, for times of words.

        Row i is what the model attended to when it chose ids[i]: that of the token before it. A frame is
        0.02 s. Raises NotImplementedError where the model gives no weights.
        """
        ...

    def forget(self) -> None:
        """Drop what was kept of the windows heard until now: the next are heard as if they were the first."""
        ...

    def close(self) -> None:
        """Free what the model holds. Closing twice is harmless."""
        ...
