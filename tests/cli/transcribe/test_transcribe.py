"""`specport transcribe` on a scripted model."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.toys.scripted_speech import ScriptedModel, said, tone, write_wav

from specport import cli, speech
from specport.cli.transcribe import output
from specport.cli.transcribe.output import FORMATS
from specport.models import atomic
from specport.speech import checkpoint, formats
from specport.speech.audio.vad import SileroVad
from specport.speech.speakers.embeddings import VoiceEncoder
from specport.speech.transcriber import Transcriber

pytest.importorskip("av")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let `specport.speech.load` give a scripted model; return the arguments that it gets."""
    calls: list[dict[str, Any]] = []

    def found(model: str | None = None, **options: Any) -> Transcriber:
        calls.append({"model": model, **options})
        script = [said(0.0, "ask not what", 2.0, 2.0, "your country", 4.0)]
        return Transcriber(ScriptedModel(script), model_name="scripted", device_name="nowhere")

    monkeypatch.setattr(speech, "load", found)
    return calls


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "talk.wav", tone(5.0))


def test_text_goes_to_stdout(load: Any, talk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(talk), "--draft", "suffix", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out == "ask not what\nyour country\n"
    assert "scripted on nowhere" in err and "5 s of en" in err and "draft tokens accepted" in err
    assert load[0]["model"] is None and load[0]["draft"] == "suffix" and load[0]["device"] == "cpu"
    assert cli.main(["transcribe", str(talk), "--quiet", "--timestamps"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "[00:00:00.000 --> 00:00:02.000] ask not what" and err == ""
    assert cli.main(["transcribe", str(talk), "--quiet", "--format", "srt"]) == 0
    assert capsys.readouterr().out.startswith("1\n00:00:00,000 --> ")


def test_files(load: Any, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rttm = tmp_path / "who.rttm"
    rttm.write_text("SPEAKER a 1 0 1.1 <NA> <NA> x <NA> <NA>\nSPEAKER a 1 1.1 9 <NA> <NA> y <NA> <NA>\n")
    out = tmp_path / "out"
    arguments = ["transcribe", str(talk), "--output", str(out), "--rttm", str(rttm)]
    assert cli.main([*arguments, "--format", "txt,json,srt,vtt,tsv,rttm"]) == 0
    assert {p.name for p in out.iterdir()} == {f"talk.{form}" for form in FORMATS}
    data = json.loads((out / "talk.json").read_text(encoding="utf-8"))
    assert [s["speaker"] for s in data["segments"]][:2] == ["x", "y"] and data["complete"]
    assert (out / "talk.txt").read_text(encoding="utf-8").startswith("x: ask")
    assert "2 speakers" in capsys.readouterr().err
    assert {*FORMATS} == {*formats.FORMATS}


def test_a_bad_file_does_not_stop_the_others(
    load: Any, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    assert cli.main(["transcribe", str(bad), str(talk), "--output", str(tmp_path)]) == 2
    assert (tmp_path / "talk.txt").exists() and not (tmp_path / "bad.txt").exists()
    err = capsys.readouterr().err
    assert "bad.wav is no audio" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["gone.wav"], "there is no file gone.wav"),
        ([], "FILE is missing"),
        (["TALK", "--format", "doc"], "unknown format"),
        (["TALK", "--format", "srt,vtt"], "need --output"),
        (["TALK", "--format", "rttm"], "needs --diarize"),
        (["TALK", "--resume"], "needs --output"),
        (["TALK", "TALK", "--output", "x"], "two files"),
        (["TALK", "--batch", "0"], "batch is 0"),
        (["TALK", "--task", "sing"], "task"),
        (["TALK", "--temperature", "warm"], "list of numbers"),
        (["-", "--diarize"], "needs a file"),
        (["TALK", "--raw", "mp3"], "raw samples"),
        (["TALK", "--language", "de"], "English only"),
        (["TALK", "--seed", "-1"], "seed is -1"),
        (["TALK", "--speakers", "0"], "speakers is 0"),
        (["TALK", "--max-speakers", "0", "--diarize"], "max_speakers is 0"),
        (["TALK", "--rttm", "gone.rttm"], "gone.rttm is no RTTM file"),
        (["a\0b"], "cannot use the path"),
        (["-", "microphone"], "one live source"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], reason: str, load: Any, talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [str(talk) if each == "TALK" else each for each in arguments]
    assert cli.main(["transcribe", *found, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert reason in err and err.count("\n") == 1 and out == ""


def test_stopped_and_resumed(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_wav(tmp_path / "long.wav", tone(65.0))
    arguments = ["transcribe", str(path), "--output", str(tmp_path / "out")]
    decode, stops = ScriptedModel.decode, [2]

    def interrupted(self: ScriptedModel, windows: Any) -> Any:
        stops[0] -= 1
        if stops[0] == 0:
            raise KeyboardInterrupt
        return decode(self, windows)

    monkeypatch.setattr(ScriptedModel, "decode", interrupted)
    assert cli.main(arguments) == 130
    state = [p.name for p in (tmp_path / "out").iterdir()]
    assert state == [".long.specport-state.json"]
    assert cli.main([*arguments, "--resume"]) == 0
    text = (tmp_path / "out" / "long.txt").read_text(encoding="utf-8")
    assert text.count("ask not what") == 3 and len([*(tmp_path / "out").iterdir()]) == 1


def test_what_was_heard_is_kept_until_it_is_written(
    load: Any, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full when the text is written costs nothing: the next run only writes."""
    out = tmp_path / "out"
    arguments = ["transcribe", str(talk), "--output", str(out), "--format", "txt,srt"]

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def kept(path: Path, data: Any, indent: None) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_atomically", full)
        patch.setattr(checkpoint, "write_json", kept)
        assert cli.main(arguments) == 2
    assert "No space left" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == [".talk.specport-state.json"]
    monkeypatch.setattr(ScriptedModel, "decode", None)  # nothing is decoded again
    assert cli.main([*arguments, "--resume"]) == 0
    assert {p.name for p in out.iterdir()} == {"talk.txt", "talk.srt"}
    assert (out / "talk.txt").read_text(encoding="utf-8") == "ask not what\nyour country\n"


def test_ctrl_c_while_speakers_are_told_apart(
    load: Any, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["transcribe", str(talk), "--output", str(out), "--diarize"]
    blocks = []

    def speech(self: SileroVad, source: Any) -> Any:
        for block in source:
            blocks.append(block)
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("Ctrl-C was not heeded")

    monkeypatch.setattr(SileroVad, "__init__", lambda self, *given, **options: None)
    monkeypatch.setattr(VoiceEncoder, "__init__", lambda self, *given, **options: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with monkeypatch.context() as patch:
        patch.setattr(SileroVad, "probabilities", speech)
        try:
            assert cli.main(arguments) == 130
        finally:
            signal.signal(signal.SIGINT, before)
    assert len(blocks) == 1 and "--resume goes on from here" in capsys.readouterr().err
    assert {p.name for p in out.iterdir()} == {".talk.specport-state.json", "talk.txt"}
    monkeypatch.setattr(SileroVad, "probabilities", lambda self, source: np.zeros(100))
    monkeypatch.setattr(ScriptedModel, "decode", None)
    assert cli.main([*arguments, "--resume"]) == 0
    assert [p.name for p in out.iterdir()] == ["talk.txt"]


def test_weights_of_another_precision_do_not_go_on(
    talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = {"weights": "f", "precision": "int8", "exact": True}

    def found(model: str | None = None, **options: Any) -> Transcriber:
        return Transcriber(ScriptedModel([said(0.0, "ask", 4.0)]), model_name="m", identity=identity)

    monkeypatch.setattr(speech, "load", found)
    arguments = ["transcribe", str(talk), "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(output, "write", lambda *given, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main(arguments)
    for name, value in {"precision": "fp16", "exact": False}.items():
        before, identity[name] = identity[name], value
        assert cli.main([*arguments, "--resume"]) == 2
        assert f"is of another run: {name} differs" in capsys.readouterr().err
        identity[name] = before
    assert cli.main([*arguments, "--resume"]) == 0
