"""Whisper's own way through a long audio: one window after the other, each sees the text before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from specport.speech.audio.buffer import AudioBuffer
from specport.speech.audio.features import HOP, WINDOW, log_mel
from specport.speech.audio.read import RATE, Samples
from specport.speech.decoding.recognizer import Recognizer
from specport.speech.decoding.segments import cut
from specport.speech.decoding.words import add_words
from specport.speech.transcript import Segment

PARTIAL_S = 1.0  # of new audio, before a live text is guessed anew
_INAUDIBLE = 1e-4  # of the loudest sample that there can be: digital silence, or its dither
_SURE = 0.5  # a text that was decoded at a higher temperature is no context for the next


@dataclass(frozen=True)
class State:
    """Hold how far an audio was transcribed; it can go on from here.

    position: sample at which the next window begins. window: its number.
    context:  ids that it sees as the text before it.
    """

    position: int = 0
    window: int = 0
    context: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """Hold what one window gave; nothing while a live audio is waited for.

    partial: the text so far of a window that still grows.
    """

    segments: list[Segment] = field(default_factory=list)
    state: State = State()
    partial: str | None = None


def sequential(recognizer: Recognizer, audio: AudioBuffer, state: State) -> Iterator[Step]:
    """Yield the steps of an audio from a state on.

    Source: `transcribe` of OpenAI's Whisper. Features are made for each window by itself, so that memory is
    bounded; Whisper makes them for the whole file, with one maximum of loudness. Windows in which nothing can
    be heard are left out.
    """
    options = recognizer.options
    while True:
        yield from _waiting(recognizer, audio, state)
        if (behind := past_silence(audio, state)) != state:
            state = behind
            yield Step(state=state)
            continue
        samples = audio.window(state.position, WINDOW)
        if len(samples) < HOP:  # less than one frame of features
            return
        start = state.position / RATE
        features = log_mel(samples, recognizer.model.mel_bins)
        outcome = recognizer.decode([features], state.context, first=state.window)[0]
        if outcome.silent:
            state = replace(state, position=state.position + len(samples), window=state.window + 1)
            yield Step(state=state)
            continue
        found = cut(recognizer, outcome, start, len(samples))
        segments, length = found.segments, found.length
        if options.word_timestamps and segments:
            segments = add_words(recognizer, features, segments, start, len(samples))
            spoken = max((word.end for s in segments for word in s.words), default=start)
            if not found.whole and spoken > start:
                length = max(HOP, min(len(samples), round((spoken - start) * RATE)))
        context = state.context + tuple(i for segment in segments for i in segment.ids)
        if not options.condition_on_previous_text or outcome.temperature > _SURE:
            context = ()
        context = context[-recognizer.model.max_prompt :]
        state = State(state.position + length, state.window + 1, context)
        yield Step(segments, state)


def past_silence(audio: AudioBuffer, state: State) -> State:
    """Return the state behind the windows from it on in which nothing can be heard.

    Whisper hears words in digital silence, such as "you".
    """
    while audio.fill(state.position + WINDOW):
        samples = audio.window(state.position, WINDOW)
        if len(samples) < HOP or _audible(samples):
            break
        state = replace(state, position=state.position + len(samples), window=state.window + 1)
    return state


def _audible(samples: Samples) -> bool:
    return bool(np.abs(samples).max(initial=0.0) >= _INAUDIBLE)


def _waiting(recognizer: Recognizer, audio: AudioBuffer, state: State) -> Iterator[Step]:
    """Read a window's audio. Where it is long in coming, yield what was said so far."""
    heard = state.position
    while not audio.fill(state.position + WINDOW):
        if audio.end - heard < PARTIAL_S * RATE:
            yield Step(state=state)
        else:
            heard = audio.end
            samples = audio.window(state.position, WINDOW)
            if not _audible(samples):
                yield Step(state=state)
                continue
            features = log_mel(samples, recognizer.model.mel_bins)
            yield Step(state=state, partial=recognizer.partial(features, state.context))
