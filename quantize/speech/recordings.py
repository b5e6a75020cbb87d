"""Find the user's recordings, and read windows of them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.errors import InvalidInput
from specport.outside.places import expanded
from specport.speech.audio.buffer import AudioBuffer
from specport.speech.audio.features import WINDOW, log_mel
from specport.speech.audio.source import Source
from specport.speech.checkpoint import fingerprint

# Names of audio and video files that are looked for in folders. A file that the user names may have any.
SUFFIXES = (
    ".3gp", ".aac", ".ac3", ".aif", ".aiff", ".amr", ".ape", ".au", ".avi", ".caf", ".dts", ".flac", ".flv",
    ".g722", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".oga", ".ogg",
    ".opus", ".ts", ".tta", ".voc", ".w64", ".wav", ".webm", ".wma", ".wv",
)  # fmt: skip


def find(given: Sequence[str | Path]) -> list[tuple[Path, bool]]:
    """Return the recordings that files and folders name, each once, and whether the user named the file.

    Folders are searched to their depth, in the order of names. Raises InvalidInput.
    """
    found: dict[Path, tuple[Path, bool]] = {}
    for name in given:
        path = expanded(name)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
            if not inside:
                raise InvalidInput(f"there is no audio in {path}", "name audio files, or a folder of them")
        elif path.is_file():
            inside = []
            found[path.resolve()] = path, True
        else:
            raise InvalidInput(f"there is no file or folder {str(name)!r}", "name your recordings")
        for each in inside:
            found.setdefault(each.resolve(), (each, False))
    if not found:
        raise InvalidInput("there is no audio to learn from", "name audio files, or a folder of them")
    return [*found.values()]


def identity(paths: Sequence[Path]) -> list[str]:
    """Return what tells these recordings from others. Raises InvalidInput for one that cannot be read."""
    found = []
    for path in paths:
        try:
            found.append(fingerprint(path))
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    return found


def windows(path: Path, positions: Sequence[int], bins: int) -> Iterator[NDArray[np.float32]]:
    """Yield the features of the windows at these positions, in samples, which ascend."""
    buffer = AudioBuffer(Source(path).blocks())
    for position in positions:
        buffer.skip(position)
        buffer.fill(position + WINDOW)
        yield log_mel(buffer.window(position, WINDOW), bins)
