"""Decode windows, and decode again at a higher temperature what fails Whisper's thresholds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specport.errors import InvalidInput
from specport.speech.decoding.options import TranscribeOptions
from specport.speech.ports import Decoded, SpeechModel, SpeechTokens, Window
from specport.speech.transcript import Counts


@dataclass(frozen=True)
class Outcome:
    """Hold a window's decoded ids and what the thresholds look at.

    silent: whether the window has no speech, so that its text is to be left out.
    """

    decoded: Decoded
    temperature: float
    avg_logprob: float
    compression_ratio: float
    silent: bool

    @property
    def ids(self) -> tuple[int, ...]:
        return self.decoded.ids


class Recognizer:
    """Decode windows of features in one language.

    counts: what it took so far. words_if_can: a model that gives no times of words is no error.
    """

    def __init__(self, model: SpeechModel, options: TranscribeOptions, language: str) -> None:
        self.model, self.options, self.language = model, options, language
        self.counts = Counts()
        self.words_if_can = False
        tokens = model.tokens
        self._start: tuple[int, ...] = (tokens.sot,)
        if tokens.multilingual:
            task = tokens.translate if options.task == "translate" else tokens.transcribe
            self._start = (tokens.sot, tokens.languages[language], task)

    def prompt(self, previous: Sequence[int] = (), *, timestamps: bool = True) -> tuple[int, ...]:
        """Return the ids before a window's text. previous: ids of the text before it, cut to the last."""
        tokens = self.model.tokens
        end = () if timestamps else (tokens.no_timestamps,)
        before = tuple(previous)[-self.model.max_prompt :]
        return ((tokens.sot_prev, *before) if before else ()) + self._start + end

    def decode(
        self, features: Sequence[NDArray[np.float32]], previous: Sequence[int] = (), *, first: int = 0
    ) -> list[Outcome]:
        """Decode windows together. first: number of the first of them, for the seeds."""
        prompt = self.prompt(previous)
        found: list[Outcome | None] = [None] * len(features)
        left = [*range(len(features))]
        for attempt, temperature in enumerate(self.options.temperature):
            windows = [
                Window(
                    features[i], prompt, True, temperature,
                    seed=_seed(self.options.seed, first + i, attempt) if temperature > 0 else None,
                    max_new_tokens=self.options.max_new_tokens,
                )
                for i in left
            ]  # fmt: skip
            for i, decoded in zip(left, self.model.decode(windows), strict=True):
                found[i] = self._judged(decoded, temperature)
                self._count(decoded, attempt)
            left = [i for i in left if self._failed(found[i])]
            if not left:
                break
        return [outcome for outcome in found if outcome is not None]

    def partial(self, features: NDArray[np.float32], previous: Sequence[int] = ()) -> str:
        """Return the text of a window that still grows, decoded once and greedily."""
        window = Window(features, self.prompt(previous), True, max_new_tokens=self.options.max_new_tokens)
        outcome = self._judged(self.model.decode([window])[0], 0.0)
        return "" if outcome.silent else self.text(outcome.ids)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without timestamps."""
        return self.model.tokens.decode([i for i in ids if i < self.model.tokens.eot])

    def _judged(self, decoded: Decoded, temperature: float) -> Outcome:
        options = self.options
        mean = decoded.sum_logprob / (len(decoded.ids) + 1)
        silent = (
            options.no_speech_threshold is not None
            and decoded.no_speech_prob > options.no_speech_threshold
            and not (options.logprob_threshold is not None and mean > options.logprob_threshold)
        )
        ratio = compression_ratio(self.text(decoded.ids))
        return Outcome(decoded, temperature, mean, ratio, silent)

    def _failed(self, outcome: Outcome | None) -> bool:
        assert outcome is not None
        options = self.options
        if outcome.silent:  # another try would only make something up
            return False
        repeats = options.compression_ratio_threshold
        least = options.logprob_threshold
        return (repeats is not None and outcome.compression_ratio > repeats) or (
            least is not None and outcome.avg_logprob < least
        )

    def _count(self, decoded: Decoded, attempt: int) -> None:
        self.counts += Counts(
            tokens=len(decoded.ids) + 1, rounds=decoded.rounds, drafted=decoded.drafted,
            accepted=decoded.accepted, windows=int(not attempt), fallbacks=int(attempt > 0),
            encoder_seconds=decoded.encoder_seconds, decoder_seconds=decoded.decoder_seconds,
        )  # fmt: skip


def choose_language(
    model: SpeechModel, options: TranscribeOptions, features: Callable[[], NDArray[np.float32]]
) -> tuple[str, TranscribeOptions]:
    """Return the language that the user says, or that of the first window. Raises InvalidInput."""
    check_language(model.tokens, options)
    if not model.tokens.multilingual:
        return "en", options
    asked = options.language
    if asked is None:
        found = model.language(features())
        asked = max(found, key=lambda code: found[code])
    return asked, replace(options, language=asked)


def check_language(tokens: SpeechTokens, options: TranscribeOptions) -> None:
    """Raise InvalidInput where a model does not know the language, or cannot translate."""
    asked = options.language
    if tokens.multilingual:
        if asked is not None and asked not in tokens.languages:
            raise InvalidInput(
                f"the model has no language {asked!r}", f"it has {' '.join(sorted(tokens.languages))}"
            )
        return
    if asked not in (None, "en"):
        raise InvalidInput(f"the model knows English only, not {asked!r}", "choose a multilingual model")
    if options.task == "translate":
        raise InvalidInput("the model knows English only: it cannot translate", "choose a multilingual model")


def compression_ratio(text: str) -> float:
    """Return how many times smaller zip makes a text: large for one that repeats itself."""
    data = text.encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _seed(seed: int, window: int, attempt: int) -> int:
    return int(np.random.SeedSequence([seed, window, attempt]).generate_state(1)[0])
