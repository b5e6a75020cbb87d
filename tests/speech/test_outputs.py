"""Formats, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.toys.scripted_speech import Decoded, ScriptedModel, said, tone

from specport.errors import InvalidInput
from specport.speech import formats
from specport.speech.checkpoint import Checkpoint, fingerprint
from specport.speech.decoding.sequential import State
from specport.speech.transcriber import Transcriber
from specport.speech.transcript import Counts, Segment, Transcript, Turn, Word

SEGMENTS = (
    Segment(0.0, 1.5, " Hello <b>you</b>", (1, 2), words=(Word(0.0, 1.5, " Hello"),), speaker="SPEAKER_00"),
    Segment(3661.25, 3662.0, " & good --> bye\n\nnow", no_speech_prob=float("nan"), speaker="SPEAKER_01"),
)
TURNS = (Turn(0.0, 1.5, "SPEAKER_00"), Turn(3661.25, 3662.0, "SPEAKER_01", overlap=True))
WITH = Transcript("en", 3700.0, SEGMENTS, TURNS)
PLAIN = Transcript("en", 3700.0, tuple(Segment(s.start, s.end, s.text) for s in SEGMENTS))


def test_text() -> None:
    assert formats.text(PLAIN).startswith("Hello <b>you</b>\n& good")
    assert formats.text(WITH).splitlines()[0] == "SPEAKER_00: Hello <b>you</b>"
    assert formats.text(Transcript("en", 0.0, ())) == ""


def test_subtitles() -> None:
    assert formats.srt(PLAIN) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello <b>you</b>\n\n"
        "2\n01:01:01,250 --> 01:01:02,000\n& good -> bye now\n\n"
    )
    assert formats.vtt(WITH) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\n<v SPEAKER_00>Hello &lt;b&gt;you&lt;/b&gt;\n\n"
        "01:01:01.250 --> 01:01:02.000\n<v SPEAKER_01>&amp; good -&gt; bye now\n\n"
    )
    assert formats.clock(59.9996, ".") == "00:01:00.000" and formats.clock(-1.0, ",") == "00:00:00,000"


def test_tables() -> None:
    assert formats.tsv(PLAIN).splitlines()[:2] == ["start\tend\ttext", "0\t1500\tHello <b>you</b>"]
    assert formats.tsv(WITH).splitlines()[2] == "3661250\t3662000\tSPEAKER_01\t& good -> bye now"
    assert formats.rttm(WITH, "my talk").splitlines()[0] == (
        "SPEAKER my_talk 1 0.000 1.500 <NA> <NA> SPEAKER_00 <NA> <NA>"
    )


def test_json() -> None:
    data = json.loads(formats.to_json(WITH))
    assert data["segments"][1]["no_speech_prob"] is None and data["segments"][0]["ids"] == [1, 2]
    assert data["turns"][1]["overlap"] is True and data["language"] == "en"
    assert data["segments"][0]["words"] == [{"start": 0.0, "end": 1.5, "text": " Hello", "speaker": None}]


def test_a_state_holds_all_of_a_segment(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.json", {"audio": "a"})
    counts = Counts(tokens=3, encoder_seconds=0.5)
    checkpoint.write("en", State(16000, 1, (7, 8)), SEGMENTS, counts, now=True)
    found = checkpoint.read()
    assert found is not None
    assert found[:2] == ("en", State(16000, 1, (7, 8))) and found[3] == counts
    assert str(found[2]) == str([*SEGMENTS])  # nan equals nothing


SCRIPT = [said(0.0, "ask not", 5.0), said(0.0, "what", 5.0), said(0.0, "your country", 5.0)]


def talk(
    script: list[Decoded], path: Path, stop_after: int | None = None, **key: str
) -> tuple[Transcript, int]:
    """Transcribe 75 s, one text for each 30 s; return the transcript and the number of decoded windows."""
    model = ScriptedModel(script)
    checkpoint = Checkpoint(path, {"audio": "a", **key})
    running = Transcriber(model).stream(tone(75.0), checkpoint=checkpoint, resume=path.exists())
    for count, _ in enumerate(running, 1):
        if count == stop_after:
            running.cancel()
    return running.transcript, len(model.windows)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    whole, windows = talk(SCRIPT, tmp_path / "none.json")
    assert windows == 3
    path = tmp_path / "state.json"
    first, windows = talk(SCRIPT, path, stop_after=1)
    assert windows == 1 and not first.complete and first.text == "ask not" and path.exists()
    rest, windows = talk(SCRIPT[1:], path)
    assert windows == 2 and rest.complete
    assert rest.segments == whole.segments and rest.counts == whole.counts
    assert rest.duration == pytest.approx(75.0)
    # The state stays until its owner has written what was said.
    again, windows = talk(SCRIPT, path)
    assert windows == 0 and again.complete and again.segments == whole.segments
    assert again.duration == pytest.approx(75.0)


def test_an_error_keeps_what_was_done(tmp_path: Path) -> None:
    def fail(window: object) -> Decoded:
        raise KeyboardInterrupt

    path = tmp_path / "state.json"
    with pytest.raises(KeyboardInterrupt):
        talk([SCRIPT[0], fail], path)  # type: ignore[list-item]
    rest, windows = talk(SCRIPT[1:], path)
    assert windows == 2 and rest.text == "ask not what your country"


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    talk(SCRIPT, path, stop_after=1, model="x")
    with pytest.raises(InvalidInput, match="model differs"):
        talk(SCRIPT, path, model="y")
    good = path.read_text(encoding="utf-8")
    damages = [
        ('"format": 1', '"format": 9'), ('"position": ', '"position": -'), ('"window": 1', '"window": 1e400'),
        ('"start": 0.0', '"start": "x"'), ('"end": 5.0', '"end": NaN'), ('"context": [', '"context": [-1, '),
    ]  # fmt: skip
    assert all(before in good for before, _ in damages)
    for damage in ("", "[]", good[:-20], "[" * 5000, *(good.replace(*each) for each in damages)):
        path.write_text(damage, encoding="utf-8")
        with pytest.raises(InvalidInput, match=r"state\.json is not the state of a transcription"):
            talk(SCRIPT, path, model="x")


def test_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 200_000)
    (tmp_path / "b").write_bytes(b"x" * 199_999 + b"y")
    (tmp_path / "c").write_bytes(b"x" * 200_001)
    assert len({fingerprint(tmp_path / name) for name in "abc"}) == 3
    with pytest.raises(InvalidInput, match="cannot read"):
        fingerprint(tmp_path / "d")
