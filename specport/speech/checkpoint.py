"""Keep what was transcribed so far, so that a later run goes on from there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec import Struct

from specport.errors import InvalidInput
from specport.models.atomic import write_json
from specport.outside import Format, Table, plain_values
from specport.outside.numbers import Count, TokenId
from specport.speech.decoding.sequential import State
from specport.speech.transcript import Counts, Segment

VERSION = 1
EVERY_S = 2.0
_MOST_BYTES = 256 << 20
_SAMPLE = 1 << 16
_AGAIN = "start again without --resume"


class _Stored(Struct):
    version: int
    key: Table
    language: str
    position: Count
    window: Count
    context: tuple[TokenId, ...]
    segments: list[Segment]
    counts: Counts

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"it has version {self.version}")


_STORED = Format(
    _Stored, "the state of a transcription", _AGAIN, InvalidInput, most_bytes=_MOST_BYTES,
    parse=plain_values.from_foreign_json,  # what a model does not say is NaN
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
        found = _STORED.read_if_there(self.path)
        if found is None:
            return None
        if changed := [name for name, value in self._key.items() if found.key.get(name) != value]:
            raise InvalidInput(f"{self.path} is of another run: {', '.join(changed)} differs", _AGAIN)
        return (
            found.language, State(found.position, found.window, found.context), found.segments, found.counts,
        )  # fmt: skip

    def write(
        self, language: str, state: State, segments: Sequence[Segment], counts: Counts, *, now: bool = False
    ) -> None:
        """Write the state, unless that was done a moment ago. Raises InvalidInput."""
        if not now and time.monotonic() - self._written < EVERY_S:
            return
        data = {
            "version": VERSION,
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
        """Delete the file: the transcription is complete."""
        self.path.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """Return what tells one audio file from another: its size, and a hash of its beginning and its end."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
