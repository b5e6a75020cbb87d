"""OpenAI's routes of audio, on a scripted model."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.processes.served import Served, events, run, served, toy
from support.toys.scripted_speech import ScriptedModel, said, tone, write_wav

from specport.serve.settings import Limits
from specport.serve.speech import SpeechService
from specport.speech.ports import Decoded
from specport.speech.transcriber import Transcriber
from specport.speech.transcript import Segment

pytest.importorskip("av")
pytest.importorskip("python_multipart")

PATH = "/v1/audio/transcriptions"
SCRIPT = [said(0.0, "ask not what", 2.0, 2.0, "your country", 4.0)]


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_wav(tmp_path_factory.mktemp("audio") / "a.wav", tone(5.0)).read_bytes()


def ask(
    *requests: dict[str, Any], path: str = PATH, model: ScriptedModel | None = None, **options: Any
) -> list[httpx.Response]:
    """Send forms one after the other; a form's `file` is bytes, `headers` are sent as such."""

    async def start() -> list[httpx.Response]:
        made = model or ScriptedModel(SCRIPT)
        limits = Limits(**options)
        speech = SpeechService(Transcriber(made, model_name="heard"), "heard", limits.max_talks)
        async with served(toy(), limits, speech=speech) as s:
            try:
                return [await _sent(s, path, {**form}) for form in requests]
            finally:
                await speech.stop()
                assert made.closed

    return run(start())


async def _sent(s: Served, path: str, form: dict[str, Any]) -> httpx.Response:
    headers = form.pop("headers", None)
    file = form.pop("file", None)
    files = {"file": ("a.wav", io.BytesIO(file))} if file is not None else None
    if files is None:  # a form without a file is sent as multipart, too
        return await s.client.post(path, files={k: (None, v) for k, v in form.items()}, headers=headers)
    return await s.client.post(path, data=form, files=files, headers=headers)


def test_formats(wav: bytes) -> None:
    forms = ["json", "text", "srt", "vtt"]
    plain, text, srt, vtt = ask(*({"file": wav, "response_format": form} for form in forms))
    assert plain.status_code == 200, plain.text
    assert plain.json() == {"text": "ask not what your country", "usage": {"type": "duration", "seconds": 5}}
    assert text.text == "ask not what your country\n" and text.headers["content-type"].startswith(
        "text/plain"
    )
    assert srt.text.startswith("1\n00:00:00,000 --> 00:00:02,000\nask") and vtt.text.startswith("WEBVTT")


def test_verbose_json(wav: bytes) -> None:
    model = ScriptedModel(SCRIPT)
    [reply] = ask(
        {
            "file": wav, "model": "heard", "response_format": "verbose_json", "language": "en",
            "temperature": "0",
            "prompt": "my fellow", "timestamp_granularities[]": ["word", "segment"],
        },
        model=model,
    )  # fmt: skip
    data = reply.json()
    assert data["task"] == "transcribe" and data["language"] == "english" and data["duration"] == 5.0
    assert {*data["segments"][0]} == {
        "id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
        "no_speech_prob",
    }  # fmt: skip
    assert data["words"][0] == {"word": "ask", "start": 0.0, "end": pytest.approx(0.5, abs=0.1)}
    assert model.windows[0].prompt == (102, *model.tokens.encode("my fellow"), 101)


def test_translations(wav: bytes) -> None:
    model = ScriptedModel(SCRIPT, multilingual=True)
    [reply] = ask({"file": wav, "model": "whisper-1"}, path="/v1/audio/translations", model=model)
    assert reply.status_code == 200 and model.windows[0].prompt == (101, 111, 105)
    form = {"file": wav, "response_format": "verbose_json"}
    [reply] = ask(form, path="/v1/audio/translations", model=ScriptedModel(SCRIPT, multilingual=True))
    assert reply.json()["language"] == "english"  # whatever is spoken


def test_a_stream(wav: bytes) -> None:
    [reply] = ask({"file": wav, "stream": "true"})
    found = events(reply)
    assert [each["type"] for each in found] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert found[0]["delta"] == " ask not what" and found[2]["text"] == "ask not what your country"
    [reply] = ask({"file": b"no audio", "stream": "true"})
    assert "no audio" in events(reply)[0]["error"]["message"]


def test_a_request_takes_only_so_long(wav: bytes) -> None:
    def slow(window: Any) -> Decoded:
        time.sleep(0.5)
        return SCRIPT[0]

    model = ScriptedModel([slow])
    streamed, whole = ask({"file": wav, "stream": "true"}, {"file": wav}, model=model, request_seconds=0.1)
    assert events(streamed)[0]["error"]["code"] == "request_timeout"
    assert whole.status_code == 408 and whole.json()["error"]["code"] == "request_timeout"


def test_whoever_goes_away_while_it_waits_gives_its_place_back(wav: bytes) -> None:
    go_on = threading.Event()

    def slow(window: Any) -> Decoded:
        assert go_on.wait(30)
        return SCRIPT[0]

    async def start() -> None:
        speech = SpeechService(Transcriber(ScriptedModel([slow])), "heard", 4)
        talks = [speech.segments(io.BytesIO(wav), {}, lambda transcript: None, 60) for _ in range(2)]
        running, waiting = (asyncio.ensure_future(_first(talk)) for talk in talks)
        await asyncio.sleep(0.1)
        assert speech.num_talks == 2
        waiting.cancel()
        await asyncio.wait([waiting], timeout=10)
        assert waiting.cancelled() and speech.num_talks == 1 and not running.done()
        go_on.set()
        assert (await running).text == " ask not what"
        await talks[0].aclose()
        assert speech.num_talks == 0
        await speech.stop()

    run(start())


async def _first(talk: AsyncIterator[Segment]) -> Segment:
    return await anext(talk)


def test_models() -> None:
    async def start() -> list[str]:
        speech = SpeechService(Transcriber(ScriptedModel(SCRIPT)), "heard", 2)
        async with served(toy(), speech=speech) as s:
            reply = await s.client.get("/v1/models")
            assert (await s.client.get("/v1/models/heard")).status_code == 200
            await speech.stop()
            return [card["id"] for card in reply.json()["data"]]

    assert run(start()) == ["tiny", "heard"]


def test_refusals(wav: bytes) -> None:
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        ({"file": b"no audio at all"}, 400, "file"),
        ({"model": "heard"}, 400, "file"),
        ({"file": wav, "model": "gpt-4o"}, 404, "model"),
        ({"file": wav, "response_format": "doc"}, 400, "response_format"),
        ({"file": wav, "temperature": "hot"}, 400, "temperature"),
        ({"file": wav, "temperature": "9"}, 400, "temperature"),
        ({"file": wav, "language": "xx"}, 400, "language"),
        ({"file": wav, "language": "xx", "stream": "true"}, 400, "language"),
        ({"file": wav, "include[]": "logprobs"}, 400, "include[]"),
        ({"file": wav, "chunking_strategy": '{"type": "server_vad"}'}, 400, "chunking_strategy"),
        ({"file": wav, "timestamp_granularities[]": "page"}, 400, "timestamp_granularities"),
        ({"file": wav, "headers": {"content-type": "application/json"}}, 415, None),
        ({"file": wav, "headers": {"origin": "https://evil.example"}}, 403, None),
        ({"file": wav * 9}, 413, None),
    ]
    replies = ask(*(form for form, _, _ in cases), max_audio=len(wav) + 5000)
    for (form, status, param), reply in zip(cases, replies, strict=True):
        error = json.loads(reply.text)["error"]
        assert (reply.status_code, error["param"]) == (status, param), (form.keys(), reply.text)


def test_too_many(wav: bytes) -> None:
    [reply] = ask({"file": wav}, max_talks=1)
    assert reply.status_code == 200

    async def start() -> int:
        speech = SpeechService(Transcriber(ScriptedModel(SCRIPT)), "heard", 1)
        speech._count = 1
        async with served(toy(), speech=speech) as s:
            found = (await _sent(s, PATH, {"file": wav})).status_code
            speech._count = 0
            await speech.stop()
            return found

    assert run(start()) == 429
