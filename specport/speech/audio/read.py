"""Read audio of any format as 16 kHz mono, block by block, through PyAV (FFmpeg's libraries, no program).

Files are untrusted: a demuxer that would open further files or addresses (playlists) is not used, and nothing
is allocated by what a header claims.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from specport.errors import InvalidInput
from specport.outside.places import expanded

RATE = 16000  # samples a second
INSTALL = "pip install 'specport[speech]'"
# Demuxers that read one file only. The rest are playlists, devices, pictures and protocols.
FORMATS = (
    "3gp", "aac", "ac3", "adts", "aiff", "amr", "amrnb", "amrwb", "ape", "asf", "au", "avi", "caf",
    "dts", "eac3", "flac", "flv", "g722", "g726", "gsm", "ilbc", "m4a", "matroska", "mka", "mkv", "mov",
    "mp2", "mp3", "mp4", "mpeg", "mpegts", "ogg", "oma", "opus", "rm", "s16be", "s16le", "f32le",
    "mulaw", "alaw", "tta", "u8", "voc", "w64", "wav", "webm", "wv", "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm", "3g2", "mj2",
)  # fmt: skip
_RAW = ("s16le", "s16be", "f32le", "u8", "mulaw", "alaw")

Samples = NDArray[np.float32]


class Audio:
    """Iterate over blocks of samples [n] float32 at 16 kHz.

    name:      of the source, for messages.
    duration:  seconds as the file's header says, which may be wrong; None where it does not say.
    skipped:   packets that could not be decoded. Complete after the last block.
    Raises InvalidInput, when made and while read.
    """

    def __init__(self, source: Path | BinaryIO, *, raw: str | None = None) -> None:
        """Open a file or a binary stream. raw: as in "s16le:16000:1" for samples without any header."""
        self.name = str(source) if isinstance(source, Path) else _stream_name(source)
        self.skipped = 0
        self._file = _open_file(source) if isinstance(source, Path) else source
        self._owned = isinstance(source, Path)
        try:
            self._container = self._opened(raw)
            self._stream = self._audio_stream()
        except BaseException:
            self.close()
            raise
        self.duration = self._header_duration()

    def _opened(self, raw: str | None) -> Any:
        av = _av()
        options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
        kind = None
        if raw is not None:
            kind, rate, channels = raw_format(raw)
            layout = "mono" if channels == 1 else f"{channels} channels"
            options |= {"sample_rate": str(rate), "ch_layout": layout}
        try:
            return av.open(self._file, "r", format=kind, options=options, metadata_errors="ignore")
        except (av.FFmpegError, ValueError, OSError) as error:
            raise InvalidInput(f"{self.name} is no audio that can be read: {_reason(error)}") from error

    def _audio_stream(self) -> Any:
        streams = self._container.streams.audio
        if not streams:
            raise InvalidInput(f"{self.name} has no audio stream")
        if not streams[0].codec_context:
            raise InvalidInput(f"{self.name} has audio of an unknown codec")
        streams[0].thread_type = "AUTO"
        return streams[0]

    def _header_duration(self) -> float | None:
        stream, container = self._stream, self._container
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / 1e6
        return seconds if seconds > 0 else None

    def __iter__(self) -> Iterator[Samples]:
        av = _av()
        found = False
        kind: Any = None
        resampler: Any = None
        try:
            for frame in self._frames(av):
                new = (frame.format.name, frame.layout.name, frame.sample_rate)
                if new != kind:  # files joined to one, and streams of radio stations, change in the middle
                    yield from _rest(resampler)
                    kind, resampler = new, av.AudioResampler(format="s16", layout="mono", rate=RATE)
                for piece in resampler.resample(frame):
                    found = True
                    yield _samples(piece)
            yield from _rest(resampler)
        except (av.FFmpegError, ValueError, OSError) as error:  # the last two: of the stream that was given
            raise InvalidInput(f"{self.name} cannot be decoded: {_reason(error)}") from error
        finally:
            self.close()
        if not found and self.skipped:
            raise InvalidInput(f"{self.name} is damaged: no part of it can be decoded")

    def _frames(self, av: Any) -> Iterator[Any]:
        """Yield decoded frames. A damaged packet is left out; a file that ends too early just ends."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                self.skipped += 1
                return
            if packet is None:
                return
            try:
                for frame in packet.decode():
                    frame.pts = None  # times are counted in samples
                    yield frame
            except av.FFmpegError:
                self.skipped += 1

    def close(self) -> None:
        """Free the decoder, and the file if it was opened here. Closing twice is harmless."""
        container = getattr(self, "_container", None)
        if container is not None:
            container.close()
        if self._owned:
            self._file.close()


def read_all(source: Path | BinaryIO | bytes) -> Samples:
    """Return all samples of a short audio. Raises InvalidInput."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    blocks = [*Audio(stream)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _rest(resampler: Any) -> Iterator[Samples]:
    """Yield what a resampler still holds. None = there is none."""
    for piece in resampler.resample(None) if resampler is not None else ():
        if piece is not None:  # one that had nothing to do
            yield _samples(piece)


def _samples(frame: Any) -> Samples:
    # 16 bits as in Whisper's own reader; channels are then averaged, where floats would add up.
    found: Samples = frame.to_ndarray().reshape(-1).astype(np.float32) / 32768
    return found


def _open_file(path: Path) -> BinaryIO:
    path = expanded(path)
    try:
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder", "name the audio files in it")
        file = open(path, "rb")  # noqa: SIM115 (closed by Audio)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        # A pipe has no size; a device may have none, either.
        if path.is_file() and path.stat().st_size == 0:
            raise InvalidInput(f"{path} is empty")
    except BaseException:
        file.close()
        raise
    return file


def _stream_name(stream: Any) -> str:
    name = getattr(stream, "name", None)
    return "standard input" if name in ("<stdin>", 0) else name if isinstance(name, str) else "the audio"


def raw_format(text: str) -> tuple[str, int, int]:
    """Return the sample format, rate and channels of a text like s16le:16000:1. Raises InvalidInput."""
    kind, *numbers = text.split(":")
    try:
        rate, channels = (*map(int, numbers), *(RATE, 1)[len(numbers) :])
        if kind in _RAW and 1000 <= rate <= 768000 and 1 <= channels <= 64:
            return kind, rate, channels
    except ValueError:
        pass
    raise InvalidInput(
        f"{text!r} is no format of raw samples", f"as in s16le:16000:1; formats: {', '.join(_RAW)}"
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0][:200]


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise InvalidInput("reading audio needs the package av, which is not here", INSTALL) from error
    return av
