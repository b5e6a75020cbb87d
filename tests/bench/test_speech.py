"""`specport bench --speech` on a scripted model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.scripted_speech import ScriptedModel, said, tone, write_wav

from specport import cli, speech
from specport.bench import speech as bench
from specport.bench.clips import read_clips
from specport.errors import InvalidInput
from specport.speech.transcriber import Transcriber

pytest.importorskip("av")
pytest.importorskip("jiwer")


def test_words_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"none": "ask not what your country", "suffix": "ask not what you country"}

    def load(model: str | None = None, *, draft: str, **options: Any) -> Transcriber:
        return Transcriber(ScriptedModel([said(0.0, texts[draft], 4.0)]), model_name="scripted")

    monkeypatch.setattr(speech, "load", load)
    monkeypatch.setattr(bench, "normalizer", lambda language: str.lower)
    write_wav(tmp_path / "a.wav", tone(4.0))
    clips = tmp_path / "clips.jsonl"
    clips.write_text(
        '{"audio": "a.wav", "text": "Ask not what your country"}\n{"id": "b", "audio": "a.wav"}\n'
    )
    out = tmp_path / "out"
    arguments = ["bench", "--speech", str(clips), "--method", "suffix", "--out", str(out), "--quiet"]
    assert cli.main(arguments) == 0
    rows = {row["method"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert (rows["none"]["wer"], rows["suffix"]["wer"]) == (0.0, pytest.approx(0.2))
    assert (rows["none"]["same_text"], rows["suffix"]["same_text"]) == (2, 0)
    assert rows["suffix"]["encoder_seconds"] == 0.5 and rows["suffix"]["acceptance"] > 0.3
    printed = capsys.readouterr().out
    assert "WER %" in printed and "20.00" in printed and (out / "report.md").exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "no json", '{"audio": 3}', '{"audio": "a.wav", "text": 5}',
        '{"audio": "a.wav", "speakers": 0}',
        '{"audio": "a.wav", "id": "x"}\n{"audio": "b.wav", "id": "x"}',
    ],
)  # fmt: skip
def test_bad_lists_of_clips(text: str, tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(InvalidInput, match=r"clips\.jsonl"):
        read_clips(path)


def test_what_is_missing_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    write_wav(tmp_path / "a.wav", tone(0.1))
    for line, options, reason in (
        ('{"audio": "a.wav"}', {"methods": ["draft"]}, "--draft"),
        ('{"audio": "a.wav"}', {"runs": 0}, "runs is 0"),
        ('{"audio": "gone.wav"}', {}, "no file"),
        ('{"audio": "a.wav", "rttm": "gone.rttm"}', {}, "RTTM"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(InvalidInput, match=reason):
            bench.bench_speech(path, tmp_path, **options)
