"""`specport bench --speech` on a scripted model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.toys.scripted_speech import ScriptedModel, said, tone, write_wav

from specport import cli, speech
from specport.bench import speech as bench
from specport.bench.clips import read_clips
from specport.bench.peers import speech as peers
from specport.errors import InvalidInput
from specport.speech.transcriber import Transcriber

pytest.importorskip("av")
pytest.importorskip("jiwer")


def test_words_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"none": "ask not what your country", "suffix": "ask not what you country"}

    numerics: list[bool] = []

    def load(model: str | None = None, *, draft: str, exact: bool, **options: Any) -> Transcriber:
        numerics.append(exact)
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
    assert (rows["none"]["same_ids"], rows["suffix"]["same_ids"]) == (2, 0)
    assert rows["suffix"]["encoder_seconds"] == 0.5 and rows["suffix"]["acceptance"] > 0.3
    printed = capsys.readouterr().out
    assert "WER %" in printed and "20.00" in printed and "exact" in (out / "report.md").read_text()
    assert cli.main([*arguments, "--fast"]) == 0
    assert numerics == [True, True, False, False] and "numerics: fast" in (out / "report.md").read_text()


def test_a_draft_takes_the_place_of_its_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(model: str | None = None, *, draft: str, **options: Any) -> Transcriber:
        loaded.append(draft)
        return Transcriber(ScriptedModel([said(0.0, "ask not", 4.0)]), model_name="scripted")

    monkeypatch.setattr(speech, "load", load)
    monkeypatch.setattr(bench, "normalizer", lambda language: str.lower)
    write_wav(tmp_path / "a.wav", tone(4.0))
    clips = tmp_path / "clips.jsonl"
    clips.write_text('{"audio": "a.wav", "text": "ask not"}\n')
    methods = ["draft", "suffix|draft", "universal(draft)", "drafts/other"]
    report = bench.bench_speech(clips, tmp_path / "out", draft="my model", methods=methods)
    assert (report.about["model"], report.about["draft"]) == ("scripted", "my model")
    assert loaded == ["none", "my model", "suffix|my model", "universal(my model)", "drafts/other"]
    folder = tmp_path / "small"
    folder.mkdir()
    paths = bench.bench_speech(clips, tmp_path / "out", draft=f"suffix|{folder}", methods=["draft"])
    assert paths.about["draft"] == "suffix|small"  # others read the report: no path of this machine


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--speech", "FILE", "--max-new-tokens", "3"), "--max-new-tokens means nothing with --speech"),
        (("--speech", "FILE", "--category", "a"), "--category means nothing with --speech"),
        (("--prompts", "FILE", "--batch", "3"), "--batch means nothing without --speech"),
        (("--prompts", "FILE", "--peer-model", "a=b"), "--peer-model means nothing without --speech"),
        (("--prompts", "FILE", "--draft", "x", "--record", "r", "--runs", "2"), "nothing with --record"),
        (("--prompts", "FILE", "--draft", "x", "--record", "r", "--fast"), "--exact or --fast means nothing"),
        (("--replay", "FILE", "--model", "x"), "--model means nothing with --replay"),
    ],
    ids=str,
)
def test_options_of_another_mode_are_refused(
    asked: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "file").write_text("{}\n")
    given = [str(file) if word == "FILE" else word for word in asked]
    assert cli.main(["bench", *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1


def test_each_run_hears_the_clips_for_the_first_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ScriptedModel] = []

    def load(model: str | None = None, **options: Any) -> Transcriber:
        made.append(ScriptedModel([said(0.0, "ask what", 4.0)]))
        return Transcriber(made[-1])

    monkeypatch.setattr(speech, "load", load)
    monkeypatch.setattr(bench, "normalizer", lambda language: str.lower)
    write_wav(tmp_path / "a.wav", tone(4.0))
    clips = tmp_path / "clips.jsonl"
    clips.write_text('{"id": "a", "audio": "a.wav", "text": "ask what"}\n')
    report = bench.bench_speech(clips, tmp_path, model=str(tmp_path), methods=["suffix"], runs=3)
    assert [model.forgotten for model in made] == [3, 3]
    assert [len(model.windows) for model in made] == [4, 4]  # one is the warm-up's
    assert report.rows[0]["encoder_seconds"] == 0.25  # of one run, the fastest


def test_peers_are_warmed_up_and_told_by_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer hears the beginning of the first clip before it is timed, and has a thread for each core."""
    heard: list[tuple[int, str | None]] = []
    threads: list[int] = []

    def peer(samples: Any, language: str | None) -> str:
        heard.append((len(samples), language))
        return "ask what" if language == "en" else "nicht"

    def make(name: str, model: Path, draft: Path | None, count: int) -> Any:
        threads.append(count)
        return peer

    def load(model: str | None = None, **options: Any) -> Transcriber:
        return Transcriber(ScriptedModel([said(0.0, "ask what", 4.0)], multilingual=True))

    monkeypatch.setattr(speech, "load", load)
    monkeypatch.setattr(bench, "make", make)
    monkeypatch.setattr(bench, "normalizer", lambda language: str.lower)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 12 if logical else 6)
    write_wav(tmp_path / "a.wav", tone(8.0))
    clips = tmp_path / "clips.jsonl"
    clips.write_text(
        '{"id": "a", "audio": "a.wav", "text": "ask what"}\n'
        '{"id": "b", "audio": "a.wav", "text": "frage nicht", "language": "de"}\n'
    )
    report = bench.bench_speech(clips, tmp_path, model=str(tmp_path), methods=["genai:plain"])
    assert heard == [(5 * 16000, "en"), (8 * 16000, "en"), (8 * 16000, "de")] and threads == [6]
    row = report.rows[1]
    assert row["wer_by_language"] == {"en": 0.0, "de": pytest.approx(0.5)} and row["same_ids"] is None
    assert "| genai:plain | 0.00 | 50.00 |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("system", "command"), [("genai", "optimum-cli"), ("faster-whisper", "ct2-")])
def test_a_peer_without_its_format_names_the_command_that_makes_it(
    system: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "import_module", lambda name: None)
    with pytest.raises(InvalidInput) as caught:
        peers.make(f"{system}:plain", tmp_path, None, 1)
    assert caught.value.hint.startswith(f"name its folder: --peer-model {system}=DIR; make it with {command}")


def test_a_folder_without_a_vocabulary_gets_that_of_its_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    known = tokenizers.Tokenizer(tokenizers.models.BPE({"b": 0, "a": 1}, []))
    known.add_special_tokens(special)
    known.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "model.bin").write_bytes(b"weights")
    found = peers._with_vocabulary(tmp_path)
    assert found is not None and found["model.bin"] == b"weights"
    tokens = json.loads(found["vocabulary.json"])
    assert tokens[:6] == ["b", "a", *special, "<|0.00|>"] and tokens[-1] == "<|30.00|>"
    assert len(tokens) == 5 + 1501
    (tmp_path / "vocabulary.json").write_text("[]")
    assert peers._with_vocabulary(tmp_path) is None


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
        ('{"audio": "a.wav"}', {"methods": ["suffix|draft"]}, r"suffix\|draft needs a model"),
        ('{"audio": "a.wav"}', {"methods": ["transformers:draft"]}, "--draft"),
        ('{"audio": "a.wav"}', {"runs": 0}, "runs is 0"),
        ('{"audio": "gone.wav"}', {}, "no file"),
        ('{"audio": "a.wav"}', {"peer_models": {"genia": "."}}, "'genia'"),
        ('{"audio": "a.wav"}', {"peer_models": {"genai": ""}}, "no folder"),
        ('{"audio": "a.wav", "rttm": "gone.rttm"}', {}, "RTTM"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(InvalidInput, match=reason):
            bench.bench_speech(path, tmp_path, **options)
