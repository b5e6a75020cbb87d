"""Who spoke when: stretches of speech, vectors of voices in them, groups of vectors, turns.

One speaker at a time: who speaks at the same time as another is not heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.errors import InvalidInput
from specport.outside.places import expanded
from specport.progress import Progress, part, silent
from specport.speech.audio.buffer import AudioBuffer
from specport.speech.audio.read import RATE, Samples
from specport.speech.audio.source import Source
from specport.speech.audio.vad import SileroVad, Span, speech_spans
from specport.speech.speakers.clustering import centroids, cluster, numbered
from specport.speech.speakers.embeddings import LENGTH, LENGTH_S, VoiceEncoder
from specport.speech.speakers.score import read_rttm
from specport.speech.transcript import Turn

HOP_S = 0.4  # seconds from window to window
FRAME_S = 0.1
_SWITCH = 0.35  # what a change of speaker costs, in cosine similarity summed over frames
_SHARP_S = 0.5  # a window counts for the frames around its middle
_BATCH = 64


class Diarizer:
    """Find the turns of an audio. count: number of speakers; None = estimated, at most `most`."""

    def __init__(self, count: int | None = None, most: int = 8) -> None:
        for name, value in (("speakers", count), ("max_speakers", most)):
            if value is not None and not 1 <= value <= 64:
                raise InvalidInput(f"{name} is {value}; it must be 1 to 64")
        self._count, self._most = count, most

    def turns(
        self, source: Source, progress: Progress = silent, stopped: Callable[[], bool] = lambda: False
    ) -> list[Turn]:
        """Return the turns, in order. Reads the audio twice, block by block.

        Raises SpecportError, and Interrupted once `stopped` says so.
        """
        vad, encoder = SileroVad(progress=progress), VoiceEncoder(progress=progress)
        spans = speech_spans(vad.probabilities(source.blocks_unless(stopped)))
        if not spans:
            return []
        spots = [_spots(span) for span in spans]
        buffer = AudioBuffer(source.blocks_unless(stopped))
        vectors = self._vectors(buffer, encoder, [*chain.from_iterable(spots)], part(progress, 0.1, 0.95))
        labels = cluster(vectors, self._count, self._most)
        likeness = vectors @ centroids(vectors, labels).T
        found: list[Turn] = []
        first = 0
        for span, own in zip(spans, spots, strict=True):
            found += _span_turns(span, own, likeness[first : first + len(own)])
            first += len(own)
        return _named(_joined(found))

    @staticmethod
    def _vectors(
        buffer: AudioBuffer, encoder: VoiceEncoder, spots: Sequence[Span], progress: Progress
    ) -> NDArray[np.float32]:
        found, waiting = [], []
        for number, spot in enumerate(spots):
            start, end = round(spot.start * RATE), round(spot.end * RATE)
            buffer.skip(start)
            buffer.fill(end)
            waiting.append(_filled(buffer.window(start, end - start)))
            if len(waiting) == _BATCH or number + 1 == len(spots):
                found.append(encoder.embed(waiting))
                waiting = []
                progress("telling speakers apart", (number + 1) / len(spots))
        buffer.close()
        return np.concatenate(found)


def _spots(span: Span) -> list[Span]:
    """Return the windows of a stretch of speech; of a short one, itself."""
    if span.length <= LENGTH_S:
        return [span]
    count = int(np.ceil((span.length - LENGTH_S) / HOP_S)) + 1
    starts = np.linspace(span.start, span.end - LENGTH_S, count)
    return [Span(float(start), float(start) + LENGTH_S) for start in starts]


def _filled(samples: Samples) -> Samples:
    """Return a window's samples; of a short one, repeated until they fill it."""
    return np.resize(samples, LENGTH) if 0 < len(samples) < LENGTH else samples


def _span_turns(span: Span, spots: Sequence[Span], likeness: NDArray[np.float32]) -> list[Turn]:
    """Return the turns in a stretch of speech: the likeliest path of speakers over its frames.

    likeness: [windows, speakers].
    """
    count = max(1, round(span.length / FRAME_S))
    edges = np.linspace(span.start, span.end, count + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    centres = np.array([(spot.start + spot.end) / 2 for spot in spots])
    weights = np.exp(-0.5 * ((middles[:, None] - centres) / _SHARP_S) ** 2) + 1e-9
    scores = weights @ likeness / weights.sum(axis=1, keepdims=True)
    path = _likeliest(scores)
    borders = [0, *(np.flatnonzero(np.diff(path)) + 1), count]
    return [Turn(float(edges[a]), float(edges[b]), str(path[a])) for a, b in pairwise(borders)]


def _likeliest(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the path [frames] with the largest sum of scores, less the cost of changes (Viterbi)."""
    frames, speakers = scores.shape
    best = scores[0].copy()
    came = np.zeros((frames, speakers), np.int64)
    for frame in range(1, frames):
        other = int(best.argmax())
        came[frame] = np.where(best >= best[other] - _SWITCH, np.arange(speakers), other)
        best = np.maximum(best, best[other] - _SWITCH) + scores[frame]
    path = np.empty(frames, np.int64)
    path[-1] = best.argmax()
    for frame in range(frames - 1, 0, -1):
        path[frame - 1] = came[frame, path[frame]]
    return path


def _joined(turns: Sequence[Turn], gap: float = 0.3) -> list[Turn]:
    """Join turns of one speaker with at most `gap` seconds between them."""
    found: list[Turn] = []
    for turn in turns:
        if found and found[-1].speaker == turn.speaker and turn.start - found[-1].end <= gap:
            found[-1] = replace(found[-1], end=turn.end)
        else:
            found.append(turn)
    return found


def _named(turns: Sequence[Turn]) -> list[Turn]:
    """Name speakers in the order in which they begin, and round times to milliseconds."""
    order = numbered(np.array([int(turn.speaker) for turn in turns], np.int64))
    return [
        Turn(round(turn.start, 3), round(turn.end, 3), f"SPEAKER_{number:02}")
        for turn, number in zip(turns, order, strict=True)
    ]


class GivenTurns:
    """Take turns from an RTTM file, as from pyannote, instead of finding them; overlap is told."""

    def __init__(self, path: Path) -> None:
        self._turns = mark_overlap(read_rttm(expanded(path)))

    def turns(
        self, source: Source, progress: Progress = silent, stopped: Callable[[], bool] = lambda: False
    ) -> list[Turn]:
        """Return the turns of the file."""
        return self._turns


def mark_overlap(turns: Sequence[Turn]) -> list[Turn]:
    """Return turns by time, each with whether another speaker talks during it."""
    found = sorted(turns, key=lambda turn: (turn.start, turn.end))
    ends = _Latest()  # of the turns before
    before = [ends.of_others(turn.speaker, turn.end) > turn.start for turn in found]
    starts = _Latest()  # of the turns behind, negative
    behind = [-starts.of_others(turn.speaker, -turn.start) < turn.end for turn in reversed(found)]
    return [
        replace(turn, overlap=True) if early or late else turn
        for turn, early, late in zip(found, before, reversed(behind), strict=True)
    ]


class _Latest:
    """Hold the largest value so far, and the largest one of any other speaker than that one's."""

    def __init__(self) -> None:
        self._first, self._second = ("", -math.inf), ("", -math.inf)

    def of_others(self, speaker: str, value: float) -> float:
        """Return the largest value of other speakers; then take this speaker's."""
        found = (self._second if self._first[0] == speaker else self._first)[1]
        if speaker == self._first[0]:
            self._first = (speaker, max(value, self._first[1]))
        elif value > self._first[1]:
            self._first, self._second = (speaker, value), self._first
        elif value > self._second[1]:
            self._second = (speaker, value)
        return found
