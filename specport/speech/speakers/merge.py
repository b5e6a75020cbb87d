"""Bring text and speakers together.

"turns": as Insanely Fast Whisper and HF's speech endpoints do it: each turn takes the segments up to the one
that ends nearest to it. Every turn takes at least one, so that a short turn takes its neighbour's.
"words": each word goes to who speaks during it, and segments are cut where the speaker changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from specport.speech.transcript import Segment, Turn, Word

Merge = Callable[[Sequence[Segment], Sequence[Turn]], list[Segment]]


def by_turns(segments: Sequence[Segment], turns: Sequence[Turn]) -> list[Segment]:
    """Return the segments with the speakers of turns whose ends are nearest."""
    left, found = [*segments], []
    for end, speaker in _whole_turns(turns):
        if not left:
            break
        last = min(range(len(left)), key=lambda i: abs(left[i].end - end))
        found += [_spoken(segment, speaker) for segment in left[: last + 1]]
        left = left[last + 1 :]
    return [*found, *left]  # what follows the last turn has no speaker


def _whole_turns(turns: Sequence[Turn]) -> list[tuple[float, str]]:
    """Return the end and speaker of each run of one speaker's turns. It ends where the next one begins."""
    runs = [[*run] for _, run in groupby(turns, key=lambda turn: turn.speaker)]
    ends = [following[0].start for following in runs[1:]] + [run[-1].end for run in runs[-1:]]
    return [(end, run[0].speaker) for run, end in zip(runs, ends, strict=True)]


def by_words(segments: Sequence[Segment], turns: Sequence[Turn]) -> list[Segment]:
    """Return the segments, cut where the speaker of their words changes; one without words is not cut."""
    found: list[Segment] = []
    for segment in segments:
        if not turns:
            found.append(segment)
            continue
        if not segment.words:
            found.append(replace(segment, speaker=speaker_at(segment.start, segment.end, turns)))
            continue
        words = [replace(w, speaker=speaker_at(w.start, w.end, turns)) for w in segment.words]
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


def speaker_at(start: float, end: float, turns: Sequence[Turn]) -> str:
    """Return who speaks most between two times; where nobody does, who speaks nearest."""
    shares: dict[str, float] = {}
    for turn in turns:
        share = min(end, turn.end) - max(start, turn.start)
        if share > 0:
            shares[turn.speaker] = shares.get(turn.speaker, 0.0) + share
    if shares:
        return max(shares, key=lambda speaker: shares[speaker])
    middle = (start + end) / 2
    return min(turns, key=lambda turn: max(turn.start - middle, middle - turn.end)).speaker


def _spoken(segment: Segment, speaker: str | None) -> Segment:
    words = tuple(replace(word, speaker=speaker) for word in segment.words)
    return replace(segment, speaker=speaker, words=words)


MERGES: dict[str, Merge] = {"words": by_words, "turns": by_turns}
