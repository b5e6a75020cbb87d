"""Cut a window's ids into segments at their timestamps, and say where the next window begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specport.speech.audio.read import RATE
from specport.speech.decoding.recognizer import Outcome, Recognizer
from specport.speech.transcript import Segment

STEP_S = 0.02  # seconds of a timestamp
STEP = round(STEP_S * RATE)  # samples


@dataclass(frozen=True)
class Cut:
    """Hold a window's segments. length: samples that the window has told all of.

    whole: whether the text ends with a timestamp after its last word.
    """

    segments: list[Segment]
    length: int
    whole: bool


def cut(recognizer: Recognizer, outcome: Outcome, start: float, length: int) -> Cut:
    """Return the segments of a window that begins at `start` seconds and has `length` samples of audio.

    Source: `transcribe` of OpenAI's Whisper.
    """
    ids, begin = outcome.ids, recognizer.model.tokens.timestamp_begin
    stamps = [i >= begin for i in ids]
    # Two timestamps in a row: the end of one segment and the start of the next.
    ends = [i + 1 for i in range(len(ids) - 1) if stamps[i] and stamps[i + 1]]
    single = stamps[-2:] == [False, True]
    if not ends:
        last = next((i - begin for i in reversed(ids) if i >= begin), 0)
        told = min(last * STEP_S, length / RATE) if last else length / RATE
        return Cut(_made(recognizer, outcome, [(ids, start, start + told)]), length, single)
    if single:
        ends.append(len(ids))
    pieces, first = [], 0
    for end in ends:
        part = ids[first:end]
        pieces.append((part, start + (part[0] - begin) * STEP_S, start + (part[-1] - begin) * STEP_S))
        first = end
    if single:
        return Cut(_made(recognizer, outcome, pieces), length, True)
    # What follows the last pair is not finished: the next window begins there.
    told = (ids[first - 1] - begin) * STEP
    return Cut(_made(recognizer, outcome, pieces), told if 0 < told <= length else length, False)


def _made(
    recognizer: Recognizer, outcome: Outcome, pieces: Sequence[tuple[Sequence[int], float, float]]
) -> list[Segment]:
    """Return segments of pieces of ids; those without text or time are left out."""
    found = []
    for ids, start, end in pieces:
        text = recognizer.text(ids)
        if text.strip() and end > start:
            found.append(
                Segment(
                    start,
                    end,
                    text,
                    tuple(ids),
                    outcome.temperature,
                    outcome.avg_logprob,
                    outcome.compression_ratio,
                    outcome.decoded.no_speech_prob,
                )
            )
    return found
