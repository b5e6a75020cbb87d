"""Windows cut at silences and decoded together: faster than one after the other, without the text before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from specport.speech.audio.buffer import AudioBuffer
from specport.speech.audio.features import HOP, WINDOW, log_mel
from specport.speech.audio.read import RATE
from specport.speech.audio.vad import Span
from specport.speech.decoding.recognizer import Recognizer
from specport.speech.decoding.segments import cut
from specport.speech.decoding.sequential import State, Step
from specport.speech.decoding.words import add_words

MOST_S = WINDOW / RATE


def windows(speech: Sequence[Span], most: float = MOST_S) -> list[Span]:
    """Join stretches of speech to windows of at most `most` seconds, cut at silences where possible."""
    found: list[Span] = []
    for span in speech:
        pieces = _halved(span, most)
        if found and pieces[0].end - found[-1].start <= most:
            found[-1] = Span(found[-1].start, pieces.pop(0).end)
        found += pieces
    return found


def _halved(span: Span, most: float) -> list[Span]:
    """Cut a stretch that is too long into equal parts."""
    count = max(1, int(np.ceil(span.length / most - 1e-9)))
    marks = np.linspace(span.start, span.end, count + 1)
    return [Span(float(a), float(b)) for a, b in pairwise(marks)]


def batched(
    recognizer: Recognizer, audio: AudioBuffer, spans: Sequence[Span], state: State
) -> Iterator[Step]:
    """Yield a step for each batch of windows. `state.window` counts the windows that are done."""
    options, bins = recognizer.options, recognizer.model.mel_bins
    while state.window < len(spans):
        chosen = spans[state.window : state.window + options.batch]
        found = []
        for span in chosen:
            start = round(span.start * RATE)
            audio.skip(start)
            audio.fill(round(span.end * RATE))
            found.append(audio.window(start, min(WINDOW, round(span.length * RATE))))
        features = [log_mel(samples, bins) for samples in found]
        outcomes = recognizer.decode(features, state.context, first=state.window)
        segments = []
        for span, samples, mel, outcome in zip(chosen, found, features, outcomes, strict=True):
            if outcome.silent or len(samples) < HOP:
                continue
            new = cut(recognizer, outcome, span.start, len(samples)).segments
            if options.word_timestamps and new:
                new = add_words(recognizer, mel, new, span.start, len(samples))
            segments += new
        state = State(round(chosen[-1].end * RATE), state.window + len(chosen), state.context)
        yield Step(segments, state)
