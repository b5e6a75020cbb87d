"""Whisper's way through long audio: segments, seeks, context, thresholds, silence, live audio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.toys.scripted_speech import RATE, STAMP, Answer, ScriptedModel, said, tone

from specport.errors import InvalidInput
from specport.speech import languages
from specport.speech.audio.buffer import AudioBuffer
from specport.speech.audio.features import log_mel
from specport.speech.ports import Decoded, Window
from specport.speech.transcriber import Transcriber
from specport.speech.transcript import Transcript

FIRST = said(0.0, "ask not what", 4.0, 4.0, "your country", 20.0, 20.0)
LAST = said(0.0, "can do for you .", 5.0)


def transcribe(script: list[Answer], seconds: float, **options: Any) -> tuple[Transcript, ScriptedModel]:
    model = ScriptedModel(script, multilingual=options.pop("multilingual", False))
    return Transcriber(model).transcribe(tone(seconds), **options), model


def test_the_next_window_begins_where_the_text_ends() -> None:
    found, model = transcribe([FIRST, LAST], 25.0)
    assert [(s.start, s.end, s.text) for s in found.segments] == [
        (0.0, 4.0, " ask not what"), (4.0, 20.0, " your country"), (20.0, 25.0, " can do for you."),
    ]  # fmt: skip
    assert found.text == "ask not what your country can do for you."
    assert found.complete and found.language == "en" and found.duration == 25.0
    first, second = model.windows
    assert first.prompt == (101,)
    # The ids of the segments with their timestamps are the next window's context.
    assert second.prompt == (102, *FIRST.ids[:-1], 101)
    counts = found.counts
    assert (counts.windows, counts.fallbacks, counts.encoder_seconds) == (2, 0, 0.5)
    assert counts.drafted == len(FIRST.ids) + len(LAST.ids)


def test_a_text_that_ends_with_one_timestamp_fills_its_window() -> None:
    found, _ = transcribe([said(0.0, "ask not", 8.0), LAST], 40.0)
    assert [(s.start, s.end) for s in found.segments] == [(0.0, 8.0), (30.0, 35.0)]
    found, _ = transcribe([said(0.0, "ask", 2.0, 2.0, "not", 8.0), LAST], 40.0)
    assert [(s.start, s.end) for s in found.segments] == [(0.0, 2.0), (2.0, 8.0), (30.0, 35.0)]
    # Without any end the segment lasts as long as the window.
    found, _ = transcribe([said(0.0, "ask not"), LAST], 12.0)
    assert [(s.start, s.end) for s in found.segments] == [(0.0, 12.0)]


def test_windows_hold_the_audio_from_the_seek_on() -> None:
    sound = np.concatenate([tone(20.0), tone(5.0)[::-1] ** 3])
    model = ScriptedModel([FIRST, LAST])
    Transcriber(model).transcribe(sound)
    for window, start in zip(model.windows, (0, 20 * RATE), strict=True):
        np.testing.assert_array_equal(window.features, log_mel(sound[start:], 80))


@pytest.mark.parametrize(
    ("bad", "threshold"),
    [
        (said(0.0, " ".join(["ask not what"] * 60), 5.0), "compression_ratio_threshold"),
        (said(0.0, "ask not", 5.0, logprob=-1.5), "logprob_threshold"),
    ],
)
def test_a_window_that_fails_is_decoded_at_higher_temperatures(bad: Decoded, threshold: str) -> None:
    good = said(0.0, "ask not what", 5.0)
    found, model = transcribe([bad, bad, good], 5.0)
    assert [w.temperature for w in model.windows] == [0.0, 0.2, 0.4]
    assert model.windows[0].seed is None and model.windows[1].seed != model.windows[2].seed
    assert found.text == "ask not what" and found.segments[0].temperature == 0.4
    assert (found.counts.windows, found.counts.fallbacks) == (1, 2)
    again, other = transcribe([bad, bad, good], 5.0)
    assert [w.seed for w in other.windows] == [w.seed for w in model.windows] and again.text == found.text
    without, model = transcribe([bad, good], 5.0, **{threshold: None})
    assert len(model.windows) == 1 and without.text
    # The last temperature's text is taken, whatever it is.
    worst, model = transcribe([bad], 5.0)
    assert len(model.windows) == 6 and worst.segments[0].temperature == 1.0


def test_silence_is_left_out_and_not_tried_again() -> None:
    silent = said(0.0, "ask not", 5.0, logprob=-1.5, no_speech=0.9)
    found, model = transcribe([silent, LAST], 40.0)
    assert len(model.windows) == 2 and [s.start for s in found.segments] == [30.0]
    assert model.windows[1].prompt == (101,)
    # Sure of its text, it is believed, whatever the other probability says.
    found, _ = transcribe([said(0.0, "ask not", 5.0, no_speech=0.9)], 5.0)
    assert found.text == "ask not"
    # A model without the token has no such probability.
    found, _ = transcribe([said(0.0, "ask not", 5.0, no_speech=float("nan"))], 5.0)
    assert found.text == "ask not"


def test_digital_silence_is_not_heard() -> None:
    """Also not by the guess of the language, which is that of the first window with a sound."""
    pause = np.zeros(35 * RATE, np.float32)
    model = ScriptedModel([FIRST, LAST], multilingual=True)
    found = Transcriber(model).transcribe(np.concatenate([pause, tone(25.0), pause, pause]))
    assert [(s.start, s.end) for s in found.segments] == [(30.0, 34.0), (34.0, 50.0), (50.0, 55.0)]
    assert len(model.windows) == 2 and found.duration == 130.0 and found.complete
    model = ScriptedModel([LAST])
    dither = 1e-5 * np.random.default_rng(0).normal(size=40 * RATE)
    nothing = Transcriber(model).transcribe(dither.astype(np.float32))
    assert not nothing.segments and not model.windows and nothing.complete and nothing.duration == 40.0


def test_an_unsure_text_is_no_context() -> None:
    bad = said(0.0, "ask not", 5.0, logprob=-1.5)
    found, model = transcribe([bad, bad, bad, said(0.0, "for you", 5.0), LAST], 40.0)
    assert found.segments[0].temperature == pytest.approx(0.6) and model.windows[-1].prompt == (101,)
    _, model = transcribe([FIRST, LAST], 25.0, condition_on_previous_text=False)
    assert model.windows[1].prompt == (101,)


def test_prompts() -> None:
    _, model = transcribe(
        [FIRST, LAST], 25.0, multilingual=True, initial_prompt="my fellow", task="translate", language="de"
    )
    names = model.tokens.encode("my fellow")
    assert model.windows[0].prompt == (102, *names, 101, 111, 105)
    assert model.windows[1].prompt == (102, *names, *FIRST.ids[:-1], 101, 111, 105)
    found, model = transcribe([LAST], 5.0, multilingual=True)
    assert found.language == "de" and model.windows[0].prompt == (101, 111, 104)
    long = said(0.0, " ".join(["ask not"] * 150), 5.0)
    _, model = transcribe([long, LAST], 40.0, compression_ratio_threshold=None)
    assert len(model.windows[1].prompt) == 223 + 2
    assert model.windows[1].prompt[1:-1] == long.ids[-223:]


@pytest.mark.parametrize(
    ("options", "said_of_it"),
    [
        ({"language": "de"}, "English only"), ({"task": "translate"}, "cannot translate"),
        ({"task": "sing"}, "task"), ({"batch": 0}, "batch"), ({"temperature": ()}, "temperature"),
        ({"beam": 5}, "unknown option: beam"), ({"merge": "x", "diarize": True}, "merge"),
        ({"logprob_threshold": float("nan")}, "logprob_threshold"),
        ({"speakers": 0, "diarize": True}, "speakers"), ({"seed": -1}, "seed is -1"),
        ({"temperature": "warm"}, "temperature"), ({"batch": "two"}, "batch"), ({"temperature": 3}, "0 to 2"),
        ({"no_speech_threshold": "low"}, "no_speech_threshold"), ({"language": 3}, "language is 3"),
    ],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], said_of_it: str) -> None:
    with pytest.raises(InvalidInput, match=said_of_it):
        transcribe([LAST], 5.0, **options)


@pytest.mark.parametrize("given", ["en", "English", " EN "])
def test_a_language_is_given_by_code_or_name(given: str) -> None:
    assert transcribe([LAST], 5.0, multilingual=True, language=given)[0].language == "en"  # it hears German


def test_languages_have_the_names_of_whisper() -> None:
    known = pytest.importorskip("transformers.models.whisper.tokenization_whisper")
    assert languages.NAMES == known.LANGUAGES and languages.CODES == known.TO_LANGUAGE_CODE
    assert languages.name_of("xx") == languages.code_of("XX") == "xx"


def test_an_unknown_language() -> None:
    with pytest.raises(InvalidInput, match="no language 'xx'"):
        transcribe([LAST], 5.0, multilingual=True, language="xx")


@pytest.mark.parametrize("samples", [0, 1, 159])
def test_audio_that_is_too_short_has_no_text(samples: int) -> None:
    model = ScriptedModel([LAST])
    found = Transcriber(model).transcribe(np.zeros(samples, np.float32))
    assert found.text == "" and found.complete and not model.windows


def test_pauses_that_go_nowhere_end() -> None:
    """A pair of timestamps at 0 would begin the same window again, for ever."""
    model = ScriptedModel([Decoded((STAMP, STAMP, 1), -0.3, 0.0)])
    found = Transcriber(model).transcribe(tone(65.0))
    assert len(model.windows) == 3 and found.complete


def test_an_hour_is_read_in_bounded_memory() -> None:
    blocks = (np.zeros(4096, np.float32) for _ in range(3600 * RATE // 4096))
    buffer = AudioBuffer(blocks)
    most = 0
    for start in range(0, 3600 * RATE, 30 * RATE):
        buffer.fill(start + 30 * RATE)
        assert len(buffer.window(start, 30 * RATE)) > 29 * RATE
        most = max(most, buffer.end - buffer._start)
    assert most < 31 * RATE
    with pytest.raises(ValueError, match="forgotten"):
        buffer.window(0, RATE)
    buffer = AudioBuffer(iter([tone(2.0)]))
    buffer.skip(RATE)
    assert buffer.end == 2 * RATE and buffer._start == 0 and len(buffer.window(RATE, RATE)) == RATE


def test_live_audio_shows_what_is_said_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes slowly is guessed as it comes; the final text is that of the whole."""
    import threading

    from specport.speech.audio import buffer as module
    from specport.speech.audio.source import Source

    monkeypatch.setattr(module, "PATIENCE_S", 0.02)
    go_on = threading.Event()

    def slowly(self: Source) -> Iterator[Any]:
        yield tone(6.0)
        assert go_on.wait(20)
        yield tone(4.0)

    monkeypatch.setattr(Source, "blocks", slowly)

    def answer(window: Window) -> Decoded:
        return said(0.0, "ask not", 5.0)

    model = ScriptedModel([answer])
    talk = Transcriber(model).stream("-")
    partial = []
    for step in talk.steps():
        if step.partial is not None:
            partial.append(step.partial)
            go_on.set()
    assert partial == [" ask not"] and talk.transcript.text == "ask not"
    assert talk.transcript.duration == 10.0 and len(model.windows) == 2


def test_cancelled_between_windows() -> None:
    model = ScriptedModel([said(0.0, "ask not", 5.0)])
    talk = Transcriber(model).stream(tone(90.0))
    for segment in talk:
        assert segment.text == " ask not"
        talk.cancel()
    assert len(model.windows) == 1 and not talk.transcript.complete and talk.transcript.text == "ask not"


def test_what_gives_the_audio_is_let_go_where_the_caller_reads_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from specport.speech.audio.source import Source

    closed = []

    def blocks(self: Source) -> Iterator[Any]:
        try:
            for _ in range(90):
                yield tone(1.0)
        finally:
            closed.append(self.name)

    monkeypatch.setattr(Source, "blocks", blocks)
    talk = Transcriber(ScriptedModel([said(0.0, "ask not", 5.0)])).stream(tone(1.0))
    next(talk.steps())
    assert not closed
    talk.steps().close()
    assert closed == ["audio"]


def test_the_thread_that_reads_ahead_ends_with_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from specport.speech.audio import buffer as module

    monkeypatch.setattr(module, "PATIENCE_S", 0.02)
    before = {*threading.enumerate()}
    buffer = AudioBuffer((tone(0.1) for _ in iter(int, 1)), live=True)  # without an end: it fills the queue
    assert buffer.fill(RATE)
    (reader,) = {*threading.enumerate()} - before
    buffer.close()
    reader.join(20)
    assert not reader.is_alive()


def test_one_temperature_is_enough() -> None:
    found, model = transcribe([LAST], 5.0, temperature=0.5)
    assert model.windows[0].temperature == 0.5 and found.segments[0].temperature == 0.5
