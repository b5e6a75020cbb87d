"""Keep what was transcribed so far, so that a later run goes on from there."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specport.errors import InvalidInput
from specport.models.atomic import write_json
from specport.outside import Format, plain_values
from specport.outside.numbers import Count, TokenId
from specport.speech.decoding.sequential import State
from specport.speech.transcript import Counts, Segment, Word

VERSION = 1
EVERY_S = 2.0
_SAMPLE = 1 << 16
_HINT = "start again without --resume"


@dataclass(frozen=True)
class _Saved:
    """Hold what the file holds. Raises ValueError for times that are none."""

    key: dict[str, Any]
    language: str
    position: Count
    window: Count
    context: tuple[TokenId, ...]
    segments: tuple[Segment, ...]
    counts: Counts

    def __post_init__(self) -> None:
        timed: list[Segment | Word] = [*self.segments]
        timed += [word for segment in self.segments for word in segment.words]
        if not all(math.isfinite(each.start) and math.isfinite(each.end) for each in timed):
            raise ValueError("it has a time that is no number")


_SAVED = Format(
    _Saved, "the state of a transcription", _HINT, InvalidInput, version=VERSION, most_bytes=256 << 20,
    parse=plain_values.from_foreign_json,  # a probability of no speech may be nan
)  # fmt: skip


class Checkpoint:
    """Hold the state of one transcription in a file. It is written at most every two seconds.

    key: what must be the same for a later run to go on: the audio, the model, the options.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self._key = path, dict(key)
        self._written = 0.0

    def read(self) -> tuple[str, State, list[Segment], Counts] | None:
        """Return language, state, segments and counts; None where there is no file.

        Raises InvalidInput where the file is damaged or of another transcription.
        """
        saved = _SAVED.read_if_there(self.path)
        if saved is None:
            return None
        changed = [name for name, value in self._key.items() if saved.key.get(name) != value]
        if changed:
            raise InvalidInput(f"{self.path} is of another run: {', '.join(changed)} differs", _HINT)
        state = State(saved.position, saved.window, saved.context)
        return saved.language, state, [*saved.segments], saved.counts

    def write(
        self, language: str, state: State, segments: Sequence[Segment], counts: Counts, *, now: bool = False
    ) -> None:
        """Write the state, unless that was done a moment ago. Raises InvalidInput."""
        if not now and time.monotonic() - self._written < EVERY_S:
            return
        data = {
            "format": VERSION,
            "key": self._key,
            "language": language,
            "position": state.position,
            "window": state.window,
            "context": list(state.context),
            "segments": [asdict(segment) for segment in segments],
            "counts": asdict(counts),
        }
        try:
            write_json(self.path, data, indent=None)
        except OSError as error:
            raise InvalidInput(f"cannot write {self.path}: {error.strerror}") from error
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file: what it led to is complete and written."""
        self.path.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """Return what tells one audio file from another: its size, and a hash of its beginning and its end.

    Raises InvalidInput where it cannot be read.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
