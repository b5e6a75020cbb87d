"""Record from the microphone, through sounddevice (PortAudio), where that is installed."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np

from specport.errors import DeviceError, InvalidInput
from specport.speech.audio.read import RATE, Samples

_BLOCK = RATE // 10
_WAIT_S = 0.2
_MOST_S = 600  # of sound that waits to be read: 38 MB


class Microphone:
    """Record from the system's default microphone until `stop`.

    lost: seconds that were dropped, since ten minutes waited to be read: nothing here is as fast as speech.
    """

    def __init__(self) -> None:
        try:
            import sounddevice
        except ImportError as error:
            raise InvalidInput(
                "recording needs the package sounddevice, which is not here", "pip install sounddevice"
            ) from error
        except OSError as error:  # without PortAudio
            raise DeviceError(f"recording is not possible: {error}") from error
        self._sounddevice = sounddevice
        self._stopped = False
        self.lost = 0.0

    def blocks(self) -> Iterator[Samples]:
        """Yield blocks of a tenth of a second. Raises DeviceError."""
        heard: queue.Queue[Samples] = queue.Queue(_MOST_S * RATE // _BLOCK)

        def keep(data: Any, frames: int, time: Any, status: Any) -> None:
            try:
                heard.put_nowait(np.array(data[:, 0], np.float32))
            except queue.Full:
                self.lost += frames / RATE

        try:
            with self._sounddevice.InputStream(
                samplerate=RATE, channels=1, dtype="float32", blocksize=_BLOCK, callback=keep
            ):
                while not self._stopped:
                    try:
                        yield heard.get(timeout=_WAIT_S)
                    except queue.Empty:
                        continue
        except self._sounddevice.PortAudioError as error:
            raise DeviceError(f"the microphone cannot be used: {error}") from error
        while not heard.empty():
            yield heard.get()

    def stop(self) -> None:
        """End the recording; what was said before is still yielded."""
        self._stopped = True
