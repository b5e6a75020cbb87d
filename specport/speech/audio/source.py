"""Where audio comes from: a file, bytes, samples, standard input, the microphone."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from specport.errors import InvalidInput
from specport.speech.audio.microphone import Microphone
from specport.speech.audio.read import RATE, Audio, Samples

AudioLike: TypeAlias = "str | Path | bytes | BinaryIO | NDArray[Any]"
STDIN, MICROPHONE = "-", "microphone"
_PIECE = 10 * RATE  # samples


class Interrupted(Exception):
    """Reading was to stop."""


class Source:
    """Hold an audio that is read from its beginning, once or several times.

    name: for messages and files. path: the file, where it is one.
    live: whether the audio may be long in coming. again: whether it can be read more than once.
    duration: seconds as the header says, once it was opened; None where unknown. skipped: damaged packets.
    lost:     seconds that a microphone heard while too much waited to be read.
    """

    def __init__(self, given: AudioLike, raw: str | None = None) -> None:
        self.duration: float | None = None
        self.skipped = 0
        self._raw = raw
        self._microphone: Microphone | None = None
        self.path: Path | None = None
        self._given: Path | bytes | BinaryIO | Samples
        if isinstance(given, np.ndarray):
            self._given, self.name = _checked(given), "audio"
        elif isinstance(given, (bytes, bytearray)):
            self._given, self.name = bytes(given), "audio"
        elif given == STDIN:
            self._given, self.name = sys.stdin.buffer, "stdin"
        elif given == MICROPHONE:
            self._microphone, self.name = Microphone(), MICROPHONE
            self._given = b""
        elif isinstance(given, (str, Path)):
            self._given = self.path = Path(given)
            self.name = self.path.stem
        else:
            self._given, self.name = given, "audio"
        self.live = isinstance(given, str) and given in (STDIN, MICROPHONE)
        self.again = not self.live and (isinstance(self._given, (Path, bytes, np.ndarray)) or self._rewound())

    @property
    def lost(self) -> float:
        return 0.0 if self._microphone is None else self._microphone.lost

    def blocks(self) -> Iterator[Samples]:
        """Return the blocks of samples from the beginning. Raises InvalidInput, at once where it can."""
        if self._microphone is not None:
            return self._microphone.blocks()
        if isinstance(self._given, np.ndarray):
            given = self._given
            self.duration = len(given) / RATE
            return (given[start : start + _PIECE] for start in range(0, len(given), _PIECE))
        stream = io.BytesIO(self._given) if isinstance(self._given, bytes) else self._given
        if self.again:
            self._rewound()
        audio = Audio(stream, raw=self._raw)
        self.duration = audio.duration
        return self._read(audio)

    def blocks_unless(self, stopped: Callable[[], bool]) -> Iterator[Samples]:
        """Yield the blocks as `blocks` does. Raises Interrupted once `stopped` says so."""
        for block in self.blocks():
            if stopped():
                raise Interrupted
            yield block

    def _read(self, audio: Audio) -> Iterator[Samples]:
        yield from audio
        self.skipped = audio.skipped

    def _rewound(self) -> bool:
        """Go to the beginning of a stream. Return whether that is possible."""
        seek = getattr(self._given, "seek", None)
        try:
            return seek is not None and seek(0) is not None
        except (OSError, ValueError):
            return False

    def stop(self) -> bool:
        """End a recording. Return whether there is one."""
        if self._microphone is None:
            return False
        self._microphone.stop()
        return True


def _checked(samples: NDArray[Any]) -> Samples:
    """Return samples as float32. Raises InvalidInput."""
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise InvalidInput("samples must be one row of floating-point numbers at 16 kHz, -1 to 1")
    return np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
