"""Times of words: which frames the text's tokens attend to, as one path through time.

Source: `timing.py` of OpenAI's Whisper.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specport.errors import InvalidInput
from specport.speech.audio.read import RATE
from specport.speech.decoding.recognizer import Recognizer
from specport.speech.ports import SpeechTokens
from specport.speech.transcript import Segment, Word

FRAME_S = 0.02  # seconds of a frame of the encoder
_MEDIAN = 7  # frames
_UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")  # languages written without spaces
_BEFORE, _AFTER = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
_STOPS = ".。!！?？"  # noqa: RUF001
_MAX_MEDIAN_S = 0.7

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class _Piece:
    text: str
    ids: tuple[int, ...]


def add_words(
    recognizer: Recognizer, features: Weights, segments: Sequence[Segment], start: float, length: int
) -> list[Segment]:
    """Return a window's segments with the times of their words.

    start: seconds at which the window begins. length: samples of audio in it. Raises InvalidInput where the
    model gives none.
    """
    tokens = recognizer.model.tokens
    texts = [[i for i in segment.ids if i < tokens.eot] for segment in segments]
    ids = [i for text in texts for i in text]
    prompt = recognizer.prompt(timestamps=False)
    try:
        weights = recognizer.model.align(features, prompt, [*ids, tokens.eot])
    except NotImplementedError as error:
        if recognizer.words_if_can:
            return [*segments]
        raise InvalidInput("this model gives no times of words", "leave out --word-timestamps") from error
    frames = max(1, min(weights.shape[-1], -(-length // round(FRAME_S * RATE))))
    moments = token_starts(weights[:, :, :frames])
    words = []
    first = 0
    for text in texts:
        pieces = _merged(split_words(tokens, text, recognizer.language))
        row = []
        for piece in pieces:
            last = first + len(piece.ids)
            row.append(Word(moments[first] * FRAME_S, moments[last] * FRAME_S, piece.text))
            first = last
        words.append(row)
    longest = 2 * _median_length([word for row in words for word in row])
    return [
        replace(segment, words=tuple(_placed(row, start, longest)))
        for segment, row in zip(segments, words, strict=True)
    ]


def token_starts(weights: Weights) -> NDArray[np.int64]:
    """Return the frame at which each token begins. weights: [heads, tokens, frames] of attention."""
    spread = weights.std(axis=-2, keepdims=True)
    normal = (weights - weights.mean(axis=-2, keepdims=True)) / np.maximum(spread, 1e-8)
    matrix = _median_filter(normal).mean(axis=0)
    rows, frames = time_path(-matrix.astype(np.float64))
    jumps = np.flatnonzero(np.diff(rows, prepend=-1))
    return frames[jumps]


def time_path(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cheapest path (rows, columns) from corner to corner, each step down, right or both.

    Dynamic time warping, computed by diagonals.
    """
    rows, columns = cost.shape
    best = np.full((rows + 1, columns + 1), np.inf)
    best[0, 0] = 0.0
    came = np.zeros((rows + 1, columns + 1), np.int8)
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        both, down, right = best[i - 1, j - 1], best[i - 1, j], best[i, j - 1]
        step = np.where((both < down) & (both < right), 0, np.where((down < both) & (down < right), 1, 2))
        came[i, j] = step
        best[i, j] = cost[i - 1, j - 1] + np.choose(step, [both, down, right])
    i, j = rows, columns
    path = []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        step = came[i, j]
        i, j = i - (step != 2), j - (step != 1)
    path += [(row, 0) for row in reversed(range(i))] if i else [(0, column) for column in reversed(range(j))]
    found = np.array(path[::-1], np.int64)
    return found[:, 0], found[:, 1]


def split_words(tokens: SpeechTokens, ids: Sequence[int], language: str) -> list[_Piece]:
    """Return the words of a text, each with its ids; where the language has no spaces, its characters."""
    pieces: list[_Piece] = []
    waiting: list[int] = []
    for each in ids:
        waiting.append(each)
        text = tokens.decode(waiting)
        if "�" not in text:  # else a token is a part of a character
            pieces.append(_Piece(text, tuple(waiting)))
            waiting = []
    if waiting:
        pieces.append(_Piece(tokens.decode(waiting), tuple(waiting)))
    if language in _UNSPACED:
        return pieces
    words: list[_Piece] = []
    for piece in pieces:
        own = piece.text.startswith(" ") or (piece.text.strip() and piece.text.strip() in string.punctuation)
        if own or not words:
            words.append(piece)
        else:
            words[-1] = _Piece(words[-1].text + piece.text, words[-1].ids + piece.ids)
    return words


def _merged(words: list[_Piece]) -> list[_Piece]:
    """Join punctuation to the word that it belongs to."""
    found: list[_Piece] = []
    opening: _Piece | None = None
    for word in words:
        if word.text.startswith(" ") and word.text.strip() and word.text.strip() in _BEFORE:
            opening = word if opening is None else _joined(opening, word)
        elif (
            found
            and opening is None
            and word.text
            and word.text in _AFTER
            and not found[-1].text.endswith(" ")
        ):
            found[-1] = _joined(found[-1], word)
        else:
            found.append(word if opening is None else _joined(opening, word))
            opening = None
    return [*found, opening] if opening is not None else found


def _joined(one: _Piece, other: _Piece) -> _Piece:
    return _Piece(one.text + other.text, one.ids + other.ids)


def _median_length(words: Sequence[Word]) -> float:
    lengths = [word.end - word.start for word in words if word.end > word.start]
    return min(_MAX_MEDIAN_S, float(np.median(lengths))) if lengths else _MAX_MEDIAN_S


def _placed(words: Sequence[Word], start: float, longest: float) -> list[Word]:
    """Return words at their times in the audio. A pause at a sentence's end is no part of the word there."""
    found = []
    for i, word in enumerate(words):
        begin, end = word.start, word.end
        if end - begin > longest > 0:
            if word.text.strip()[-1:] in _STOPS or i == len(words) - 1:
                end = begin + longest
            elif i == 0 or words[i - 1].text.strip()[-1:] in _STOPS:
                begin = end - longest
        found.append(replace(word, start=round(start + begin, 3), end=round(start + end, 3)))
    return found


def _median_filter(x: Weights) -> Weights:
    """Return the median of each frame and its neighbours."""
    half = _MEDIAN // 2
    if x.shape[-1] <= half:
        return x
    padded = np.pad(x, ((0, 0), (0, 0), (half, half)), mode="reflect")
    found: Weights = np.median(np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN, axis=-1), axis=-1)
    return found
