"""Bring text and speakers together.

"turns": as Insanely Fast Whisper and HF's speech endpoints do it: each turn takes the segments up to the one
that ends nearest to it. Every turn takes at least one, so that a short turn takes its neighbour's.
"words": each word goes to who speaks during it, and segments are cut where the speaker changes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby

import numpy as np
from numpy.typing import NDArray

from specport.speech.transcript import Segment, Turn, Word

Merge = Callable[[Sequence[Segment], Sequence[Turn]], list[Segment]]


def by_turns(segments: Sequence[Segment], turns: Sequence[Turn]) -> list[Segment]:
    """Return the segments with the speakers of turns whose ends are nearest."""
    ends = [*accumulate((segment.end for segment in segments), max)]
    found: list[Segment] = []
    for end, speaker in _whole_turns(turns):
        first = len(found)
        if first == len(segments):
            break
        last = _nearest(ends, end, first)
        found += [_spoken(segment, speaker) for segment in segments[first : last + 1]]
    return [*found, *segments[len(found) :]]  # what follows the last turn has no speaker


def _nearest(ends: Sequence[float], end: float, first: int) -> int:
    """Return the first place, from `first` on, whose end is nearest. ends: ascending."""
    place = bisect_left(ends, end, first)
    if place == len(ends) or (place > first and end - ends[place - 1] <= ends[place] - end):
        place = bisect_left(ends, ends[place - 1], first)
    return place


def _whole_turns(turns: Sequence[Turn]) -> list[tuple[float, str]]:
    """Return the end and speaker of each run of one speaker's turns. It ends where the next one begins."""
    runs = [[*run] for _, run in groupby(turns, key=lambda turn: turn.speaker)]
    ends = [following[0].start for following in runs[1:]] + [run[-1].end for run in runs[-1:]]
    return [(end, run[0].speaker) for run, end in zip(runs, ends, strict=True)]


def by_words(segments: Sequence[Segment], turns: Sequence[Turn]) -> list[Segment]:
    """Return the segments, cut where the speaker of their words changes; one without words is not cut."""
    if not turns:
        return [*segments]
    pieces = [piece for segment in segments for piece in segment.words or (segment,)]
    speakers = iter(speakers_at([(piece.start, piece.end) for piece in pieces], turns))
    found: list[Segment] = []
    for segment in segments:
        if not segment.words:
            found.append(replace(segment, speaker=next(speakers)))
            continue
        words = [replace(word, speaker=next(speakers)) for word in segment.words]
        runs = [[*run] for _, run in groupby(words, key=lambda word: word.speaker)]
        found += [
            segment_of(segment, run) if len(runs) > 1 else _spoken(segment, run[0].speaker) for run in runs
        ]
    return found


def segment_of(segment: Segment, words: Sequence[Word]) -> Segment:
    """Return the part of a segment with these words."""
    return replace(
        segment, start=words[0].start, end=words[-1].end, text="".join(word.text for word in words), ids=(),
        words=tuple(words), speaker=words[0].speaker,
    )  # fmt: skip


def speakers_at(times: Sequence[tuple[float, float]], turns: Sequence[Turn]) -> list[str]:
    """Return who speaks most from each start to its end; where nobody does, who speaks nearest.

    The time grows with speakers times pieces, not with turns times pieces.
    """
    starts, ends = np.array(times, np.float64).reshape(-1, 2).T
    middles = (starts + ends) / 2
    of: dict[str, list[tuple[float, float]]] = {}
    for turn in sorted(turns, key=lambda turn: (turn.start, turn.end)):
        of.setdefault(turn.speaker, []).append((turn.start, turn.end))
    shares, distances = [], []
    for spans in of.values():
        own = _joined(spans)
        # What was spoken up to a moment grows during turns, and is constant between them.
        spoken = np.append(0.0, np.cumsum(own[:, 1] - own[:, 0]))
        knots, values = own.ravel(), np.repeat(spoken, 2)[1:-1]
        shares.append(np.interp(ends, knots, values) - np.interp(starts, knots, values))
        behind = np.searchsorted(own[:, 0], middles, "right")
        near = own[np.clip([behind - 1, behind], 0, len(own) - 1)]
        distances.append(np.maximum(near[..., 0] - middles, middles - near[..., 1]).min(axis=0))
    share = np.round(shares, 6)
    chosen = np.where(share.max(axis=0) > 0, share.argmax(axis=0), np.argmin(distances, axis=0))
    names = [*of]
    return [names[i] for i in chosen]


def _joined(spans: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
    """Return [n, 2] spans without overlap. spans: in order."""
    found: list[list[float]] = []
    for start, end in spans:
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return np.array(found)


def _spoken(segment: Segment, speaker: str | None) -> Segment:
    words = tuple(replace(word, speaker=speaker) for word in segment.words)
    return replace(segment, speaker=speaker, words=words)


MERGES: dict[str, Merge] = {"words": by_words, "turns": by_turns}
