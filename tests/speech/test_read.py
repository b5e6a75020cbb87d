"""Audio files of many kinds, and files that are none."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.toys.scripted_speech import RATE, ScriptedModel, said, tone, write_wav

from specport.errors import InvalidInput
from specport.speech.audio.read import Audio, read_all
from specport.speech.audio.source import Source
from specport.speech.transcriber import Transcriber

av = pytest.importorskip("av")


def encode(path: Path, samples: np.ndarray, codec: str, rate: int, layout: str = "mono") -> Path:
    """Write an audio file through PyAV."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.format, layout=layout, rate=rate, frame_size=stream.frame_size
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            out.mux(stream.encode(piece))
    return path


def loudest(samples: np.ndarray) -> float:
    """Return the frequency with most power, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples))
    return float(spectrum.argmax() * RATE / len(samples))


def test_wav_of_two_channels_at_8_khz(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(1.5, 8000), 8000, channels=2)
    samples = read_all(path)
    assert samples.dtype == np.float32 and len(samples) == pytest.approx(1.5 * RATE, abs=40)
    assert loudest(samples) == pytest.approx(440, abs=2)
    # Resampling rounds at the ends only.
    np.testing.assert_allclose(samples[500:-500], tone(1.5)[500 : len(samples) - 500], atol=0.02)
    assert len(read_all(path.read_bytes())) == len(samples)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.m4a", "aac")]
)
def test_compressed_formats(name: str, codec: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec} here")
    samples = read_all(encode(tmp_path / name, tone(2.0, 48000), codec, 48000))
    assert len(samples) / RATE == pytest.approx(2.0, abs=0.1)
    assert loudest(samples) == pytest.approx(440, abs=3)


def test_raw_samples() -> None:
    data = (tone(0.5, 8000) * 32767).astype("<i2").tobytes()
    blocks = [*Audio(io.BytesIO(data), raw="s16le:8000:1")]
    assert len(np.concatenate(blocks)) == pytest.approx(0.5 * RATE, abs=40)
    for wrong in ("s16le:x", "mp3:16000:1", "s16le:16000:1:1", "s16le:10:1", "s16le:16000:0", ""):
        with pytest.raises(InvalidInput, match="no format of raw samples"):
            Audio(io.BytesIO(data), raw=wrong)


def test_one_sample_and_none(tmp_path: Path) -> None:
    assert len(read_all(write_wav(tmp_path / "one.wav", np.ones(1)))) == 1
    found = Transcriber(ScriptedModel([said(0.0, "ask", 1.0)])).transcribe(
        write_wav(tmp_path / "0.wav", np.ones(0))
    )
    assert found.text == "" and found.complete


def test_a_truncated_file_has_its_beginning(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "a.wav", tone(3.0)).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2 + 1])
    model = ScriptedModel([said(0.0, "ask not", 1.0)])
    found = Transcriber(model).transcribe(tmp_path / "cut.wav")
    assert found.text == "ask not" and found.duration == pytest.approx(1.5, abs=0.1)


def test_a_header_that_lies_about_twelve_hours(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(3.0))
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 12 * 3600 * RATE * 2)
    data[4:8] = struct.pack("<I", 12 * 3600 * RATE * 2 + 36)
    path.write_bytes(data)
    source = Source(path)
    assert sum(map(len, source.blocks())) == 3 * RATE
    found = Transcriber(ScriptedModel([said(0.0, "ask not", 1.0)])).transcribe(path)
    assert found.duration == 3.0 and found.complete
    if source.duration is not None and source.duration > 5:
        assert any("header says" in note for note in found.notes)


def test_what_is_no_audio(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes, str]] = {
        "text.mp3": (
            b"this is no audio, only text\n" * 99,
            "no audio that can be read|cannot be decoded|damaged",
        ),
        "empty.wav": (b"", "is empty"),
        "head.wav": (b"RIFF\x00\x00", "no audio that can be read"),
        "noise.flac": (b"fLaC" + bytes(range(256)) * 20, "no audio|cannot be decoded|damaged"),
        # A playlist would open other files and addresses.
        "list.m3u8": (
            b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
            "no audio that can be read",
        ),
        "list.mp4": (b"ffconcat version 1.0\nfile /etc/passwd\n", "no audio that can be read"),
    }
    for name, (data, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InvalidInput, match=reason):
            read_all(path)
    with pytest.raises(InvalidInput, match="is a folder"):
        read_all(tmp_path)
    for missing in (tmp_path / "gone.wav", Path("a\0b"), Path("~nobody-of-that-name/a.wav")):
        with pytest.raises(InvalidInput, match=r"cannot (read|use|find)"):
            read_all(missing)


def test_the_sound_may_change_its_rate_and_channels_in_the_middle(tmp_path: Path) -> None:
    kinds = ((44100, "stereo"), (22050, "mono"), (16000, "mono"))
    files = [encode(tmp_path / f"{rate}.mp2", tone(1.0, rate), "mp2", rate, layout) for rate, layout in kinds]
    samples = read_all(b"".join(file.read_bytes() for file in files))
    assert 3.0 < len(samples) / RATE < 3.5
    for second in range(3):
        part = samples[second * RATE + 2000 : second * RATE + 14000]
        assert loudest(part) == pytest.approx(440, abs=3)


def test_a_stream_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 20000:
                raise OSError(5, "Input/output error")
            return super().read(min(size or 4096, 4096))

    path = write_wav(tmp_path / "a.wav", tone(2.0))
    with pytest.raises(InvalidInput, match="Input/output error"):
        read_all(Broken(path.read_bytes()))


def test_a_film_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for picture in [*(av.VideoFrame(32, 32, "yuv420p") for _ in range(3)), None]:
            out.mux(stream.encode(picture))
    with pytest.raises(InvalidInput, match="no audio stream"):
        read_all(path)


@pytest.mark.parametrize("given", [np.zeros((2, 5), np.float32), np.zeros(5, np.int16)])
def test_samples_of_another_form(given: Any) -> None:
    with pytest.raises(InvalidInput, match="one row"):
        Source(given)


def test_numbers_that_are_none() -> None:
    assert next(Source(np.array([np.nan, np.inf, 0.5])).blocks()).tolist() == [0.0, 1.0, 0.5]


def test_streams_are_read_again_where_that_is_possible(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(1.0))
    with open(path, "rb") as file:
        source = Source(file)
        assert source.again and not source.live
        assert [sum(map(len, source.blocks())) for _ in range(2)] == [RATE, RATE]
    with pytest.raises(InvalidInput, match="needs a file"):
        Transcriber(ScriptedModel([said("ask")])).stream("-", batch=2)
