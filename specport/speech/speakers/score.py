"""Diarization error rate: the share of speech time that is missed, heard where there is none, or confused.

As NIST's md-eval counts it: overlapped speech counts, a collar around the reference's borders does not.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.errors import InvalidInput
from specport.outside import read_bytes
from specport.speech.transcript import Segment, Turn

COLLAR_S = 0.25  # to each side of a border
_MOST_BYTES = 16 << 20  # of an RTTM file
_MOST_SPEAKERS = 256
_LATEST_S = 1e9
_EXHAUSTIVE = 12  # speakers of the side with fewer; above, the pairing is greedy


@dataclass(frozen=True)
class DiarizationError:
    """Hold seconds of reference speech, and of what is wrong."""

    total: float
    missed: float
    false_alarm: float
    confusion: float

    @property
    def rate(self) -> float:
        """Return the diarization error rate."""
        wrong = self.missed + self.false_alarm + self.confusion
        return wrong / self.total if self.total else float(wrong > 0)


def diarization_error(
    reference: Sequence[Turn], found: Sequence[Turn], collar: float = COLLAR_S
) -> DiarizationError:
    """Compare turns. Speakers are paired so that they share as much time as possible."""
    marks = {t for turn in (*reference, *found) for t in (turn.start, turn.end)}
    edges = {t for turn in reference for t in (turn.start, turn.end)}
    marks |= {t + side for t in edges for side in (-collar, collar)}
    times = np.array(sorted(marks))
    if len(times) < 2:
        return DiarizationError(0.0, 0.0, 0.0, 0.0)
    middles, lengths = (times[:-1] + times[1:]) / 2, np.diff(times)
    near = np.zeros(len(middles), bool)
    for edge in edges:
        near |= np.abs(middles - edge) < collar
    lengths = np.where(near, 0.0, lengths)
    true, ours = _speech(reference, middles), _speech(found, middles)
    both = np.minimum(true.sum(0), ours.sum(0))
    paired = _best_pairing((true * lengths) @ ours.T.astype(float))
    correct = sum((true[i] & ours[j]) * 1.0 for i, j in paired) if paired else np.zeros(len(middles))
    return DiarizationError(
        float(true.sum(0) @ lengths),
        float((true.sum(0) - both) @ lengths),
        float((ours.sum(0) - both) @ lengths),
        float((both - correct) @ lengths),
    )


def _speech(turns: Sequence[Turn], moments: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return [speakers, moments]: who speaks when."""
    names = sorted({turn.speaker for turn in turns})
    found = np.zeros((len(names), len(moments)), bool)
    for turn in turns:
        found[names.index(turn.speaker)] |= (moments >= turn.start) & (moments < turn.end)
    return found


def _best_pairing(shared: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return pairs (row, column), each used once, whose sum is largest: greedily for very many speakers."""
    rows, columns = shared.shape
    if rows > columns:
        return [(i, j) for j, i in _best_pairing(shared.T)]
    found: list[tuple[int, int]] = []
    if rows <= _EXHAUSTIVE:
        # Column by column: the best sum and its pairs for each set of rows that have a column by then.
        best: dict[int, tuple[float, list[tuple[int, int]]]] = {0: (0.0, [])}
        for j in range(columns):
            more = [
                (used | 1 << i, total + float(shared[i, j]), [*pairs, (i, j)])
                for used, (total, pairs) in best.items()
                for i in range(rows)
                if not used >> i & 1
            ]
            for used, total, pairs in more:
                if used not in best or total > best[used][0]:
                    best[used] = total, pairs
        return sorted(best[(1 << rows) - 1][1])
    left = shared.copy()
    for _ in range(rows):
        row, column = divmod(int(left.argmax()), columns)
        found.append((row, column))
        left[row], left[:, column] = -1, -1
    return found


def read_rttm(path: Path) -> list[Turn]:
    """Return the turns of an RTTM file; those without length are left out. Raises InvalidInput."""
    found = []
    try:
        for line in io.StringIO(read_bytes(path, _MOST_BYTES).decode("utf-8-sig")):
            parts = line.split()
            if parts[:1] != ["SPEAKER"]:
                continue
            start, length = float(parts[3]), float(parts[4])
            if not (0 <= start < _LATEST_S and 0 <= length < _LATEST_S):  # nan, too
                raise ValueError(f"a turn at {start} of {length} seconds")
            if length:
                found.append(Turn(start, start + length, parts[7]))
        if len({turn.speaker for turn in found}) > _MOST_SPEAKERS:
            raise ValueError(f"it has more than {_MOST_SPEAKERS} speakers")
    except (OSError, ValueError, IndexError) as error:
        raise InvalidInput(f"{path} is no RTTM file: {error}") from error
    return found


def right_speaker_share(segments: Sequence[Segment], truth: Sequence[Turn], found: Sequence[Turn]) -> float:
    """Return the share of words whose speaker is the true one at their middle; nobody's are not counted.

    segments: with words and speakers; found: the turns that the speakers' names come from.
    """
    names, ours = sorted({t.speaker for t in truth}), sorted({t.speaker for t in found})
    shared = np.array(
        [
            [
                sum(
                    max(0.0, min(t.end, f.end) - max(t.start, f.start))
                    for t in truth
                    for f in found
                    if (t.speaker, f.speaker) == (name, own)
                )
                for own in ours
            ]
            for name in names
        ]
    )
    paired = {ours[j]: names[i] for i, j in _best_pairing(shared)} if names and ours else {}
    right = total = 0
    for word in (word for segment in segments for word in segment.words):
        middle = (word.start + word.end) / 2
        who = {t.speaker for t in truth if t.start <= middle < t.end}
        total += bool(who)
        right += paired.get(word.speaker or "") in who
    return right / total if total else 0.0
