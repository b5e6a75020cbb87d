"""Windows cut at silences, and times of words."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.toys.scripted_speech import RATE, ScriptedModel, said, tone, write_wav

from specport.errors import InvalidInput
from specport.speech import transcriber as module
from specport.speech.audio.vad import SECONDS, Span, speech_spans
from specport.speech.decoding.batched import windows
from specport.speech.decoding.words import split_words, time_path, token_starts
from specport.speech.transcriber import Transcriber


def test_windows_are_cut_at_silences() -> None:
    spans = [Span(0, 10), Span(11, 25), Span(26, 35), Span(40, 45), Span(100, 165)]
    found = windows(spans)
    assert found[:2] == [Span(0, 25), Span(26, 45)]
    assert [round(s.length, 2) for s in found[2:]] == [21.67] * 3
    assert windows([]) == [] and windows([Span(1, 2)]) == [Span(1, 2)]


def test_stretches_of_speech() -> None:
    p = np.zeros(200)
    p[10:40] = 0.9
    p[20] = 0.4  # a dip
    p[60:63] = 0.9  # a click
    p[150:] = 0.8
    found = speech_spans(p, pad=0.0)
    assert [(round(s.start / SECONDS), round(s.end / SECONDS)) for s in found] == [(10, 40), (150, 200)]
    padded = speech_spans(p, pad=0.1)
    assert padded[0].start == pytest.approx(found[0].start - 0.1) and padded[1].end == found[1].end
    assert speech_spans(np.zeros(50)) == []


@pytest.fixture
def vad(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speech between 5 and 99 seconds, with pauses."""

    class Vad:
        def __init__(self, **options: Any) -> None: ...

        def probabilities(self, blocks: Any) -> Any:
            p = np.zeros(int(100 / SECONDS))
            for start, end in ((5, 25), (30, 50), (60, 80), (85, 99)):
                p[int(start / SECONDS) : int(end / SECONDS)] = 1
            return p

    monkeypatch.setattr(module, "SileroVad", Vad)


def test_batches(vad: None) -> None:
    sizes = []
    model = ScriptedModel([said(0.0, "ask not", 5.0)])
    decode = model.decode
    model.decode = lambda given: (sizes.append(len(given)), decode(given))[1]  # type: ignore[method-assign]
    found = Transcriber(model).transcribe(tone(100.0), batch=3, word_timestamps=True)
    assert sizes == [3, 1] and [round(s.start) for s in found.segments] == [5, 30, 60, 85]
    assert all(w.prompt == (101,) for w in model.windows)
    assert [word.text for word in found.segments[1].words] == [" ask", " not"]
    assert found.segments[1].words[0].start == pytest.approx(30, abs=0.1)


def test_the_silence_at_the_end_is_heard(vad: None, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = write_wav(tmp_path / "a.wav", tone(120.0))
    found = Transcriber(ScriptedModel([said(0.0, "ask not", 5.0)])).transcribe(path, batch=8)
    assert found.complete and found.duration == pytest.approx(120.0, abs=0.1) and found.notes == ()


def test_word_times() -> None:
    model = ScriptedModel([said(0.0, "ask not what", 2.0, 2.0, "your country", 4.0)])
    found = Transcriber(model).transcribe(tone(5.0), word_timestamps=True)
    words = [word for s in found.segments for word in s.words]
    assert [w.text for w in words] == [" ask", " not", " what", " your", " country"]
    assert [w.start for w in words] == pytest.approx([0, 0.5, 1.0, 1.5, 2.0], abs=0.06)
    model.align = _cannot  # type: ignore[method-assign]
    with pytest.raises(InvalidInput, match="no times of words"):
        Transcriber(model).transcribe(tone(5.0), word_timestamps=True)


def _cannot(*_: Any) -> Any:
    raise NotImplementedError


def test_the_path_through_time_is_the_cheapest() -> None:
    random = np.random.default_rng(0)
    for rows, columns in ((1, 4), (3, 1), (3, 4), (4, 4)):
        cost = random.random((rows, columns))
        best = min(
            sum(cost[i, j] for i, j in path)
            for size in range(max(rows, columns), rows + columns)
            for path in _paths(rows, columns, size)
        )
        i, j = time_path(cost)
        assert cost[i, j].sum() == pytest.approx(best)
        assert (i[0], j[0], i[-1], j[-1]) == (0, 0, rows - 1, columns - 1)


def _paths(rows: int, columns: int, size: int) -> Any:
    for steps in itertools.product(((0, 1), (1, 0), (1, 1)), repeat=size - 1):
        path = [(0, 0)]
        for down, right in steps:
            path.append((path[-1][0] + down, path[-1][1] + right))
        if path[-1] == (rows - 1, columns - 1):
            yield path


def test_tokens_begin_where_attention_moves() -> None:
    weights = np.full((3, 4, 40), 1e-3, np.float32)
    for i in range(4):
        weights[:, i, 10 * i : 10 * i + 10] = 0.1
    assert token_starts(weights).tolist() == pytest.approx([0, 10, 20, 30], abs=1)


class _Bytes:
    """Tokens of bytes: characters may be cut."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def decode(self, ids: Any) -> str:
        return b"".join(self._parts[i] for i in ids).decode("utf-8", "replace")


def test_words_of_cut_characters() -> None:
    tokens: Any = _Bytes([b" caf", b"\xc3", b"\xa9", b" no", b".", "猫".encode()[:2], "猫".encode()[2:]])
    found = split_words(tokens, range(5), "fr")
    assert [(w.text, w.ids) for w in found] == [(" café", (0, 1, 2)), (" no", (3,)), (".", (4,))]
    assert [w.text for w in split_words(tokens, (5, 6, 5, 6), "zh")] == ["猫", "猫"]
    assert RATE == 16000
