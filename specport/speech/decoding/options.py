"""How to transcribe. The names and defaults are those of OpenAI's Whisper."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specport.core.sampling.params import real_number, whole_number
from specport.errors import InvalidInput
from specport.speech.languages import code_of

TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class TranscribeOptions:
    """Hold how to transcribe. Raises InvalidInput when a value is outside its range.

    language:    code or name, as in "en" or "English"; kept as the code. None = found in the first 30 s.
    task:        "transcribe", or "translate" to English.
    temperature: one, or several in the order in which they are tried: the first is used, the next ones where
                 a window fails a threshold.
    compression_ratio_threshold: a text that zip makes smaller by more than this repeats itself: failed.
    logprob_threshold:  a mean log-probability below this counts as failed.
    no_speech_threshold: a window with more than this probability of no speech is silent, where the
                 log-probability fails, too.
    condition_on_previous_text: whether a window sees the text before it.
    initial_prompt: text that the first window sees as the text before it, as for names and spellings.
    word_timestamps: whether each word gets its time.
    batch:       windows that are decoded together; above 1 they are cut at silences and do not see the text
                 before them.
    max_new_tokens: most ids of a window.
    seed:        for temperatures above 0.
    """

    language: str | None = None
    task: str = "transcribe"
    temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = True
    initial_prompt: str | None = None
    word_timestamps: bool = False
    batch: int = 1
    max_new_tokens: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        if self.language is not None:
            if not isinstance(self.language, str):
                raise InvalidInput(f"language is {self.language!r}; it must be a code or a name, as in en")
            object.__setattr__(self, "language", code_of(self.language))
        if self.task not in TASKS:
            raise InvalidInput(f"task is {self.task!r}; it must be transcribe or translate")
        given = self.temperature if isinstance(self.temperature, (tuple, list)) else (self.temperature,)
        object.__setattr__(self, "temperature", tuple(real_number("temperature", each) for each in given))
        if not self.temperature or not all(0 <= t <= 2 for t in self.temperature):
            raise InvalidInput(f"temperature is {self.temperature}; each must be 0 to 2")
        for name, least, most in (
            ("batch", 1, 256), ("max_new_tokens", 1, 448), ("seed", 0, (1 << 63) - 1),
        ):  # fmt: skip
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
            if not least <= getattr(self, name) <= most:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be {least} to {most}")
        for name in ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(real_number(name, value)):
                raise InvalidInput(f"{name} is {value}")
